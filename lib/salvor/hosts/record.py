"""What is written down of work on machines: who does it where, before it is done; then how it ended there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.incident import new_id
from salvor.journal import Journal
from salvor.journal.folders import incidents_folder, operator
from salvor.plain import one_line

if TYPE_CHECKING:
    from salvor.hosts.rolling import Ran
    from salvor.show import Shown

_NAME = "hosts"
_LINES = 15
_WIDEST = 300


class Record:
    """The journal of one `inv hosts.run`, or of files that are copied."""

    def __init__(self, journal: Journal, command: str) -> None:
        self._journal = journal
        self._command = command

    def begun(self, machines: Sequence[str]) -> None:
        """It is about to be run there."""
        self._note(f"runs on {_named(machines)}: {self._command}", machines=list(machines))

    def ended(self, done: Sequence[Ran]) -> None:
        """How it ended, equal answers once: the last lines of what was said, with what is known to be secret masked."""
        together: dict[tuple[str, int | None, str], list[str]] = {}
        for one in done:
            together.setdefault((one.outcome, one.exit_code, one.said), []).append(one.host)
        for (outcome, code, said), machines in together.items():
            lines = [one_line(line, most=_WIDEST) for line in said.splitlines() if line.strip()][-_LINES:]
            self._note(
                f"{outcome} on {_named(machines)}", outcome=outcome, exit_code=code, machines=machines, said=lines
            )

    def _note(self, text: str, **data: Any) -> None:
        self._journal.append("note", text=text, **data)


@contextmanager
def kept(task: str, platform: str, command: str, how: Mapping[str, object], shown: Shown) -> Iterator[Record]:
    """The record of a command while the block runs it. A journal that cannot be written hinders nothing."""
    new = new_id(_NAME)
    with Journal.create(
        incidents_folder() / new,
        by=operator(),
        mirror=os.environ.get("SALVOR_MIRROR"),
        tell=shown.tell,
        incident=new,
        platform=platform,
        service=_NAME,
        title=f"{task}: {command}",
        purpose="maintenance",
        runbook=task,
        systems=[],
        wish={},
        detected_at=clock.write_time(clock.now()),
        failed_at=None,
        targets={},
        how=how,
    ) as journal:
        record = Record(journal, command)
        try:
            yield record
        except BaseException:
            journal.append("closed", result="interrupted: how it ended where is not known")
            raise
        journal.append("closed", result="done")


def _named(machines: Sequence[str]) -> str:
    rest = f" and {len(machines) - _LINES} more" if len(machines) > _LINES else ""
    return f"{len(machines)}: {', '.join(machines[:_LINES])}{rest}"
