"""Two people on the small world: the one who acts, and the one who approves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from salvor import console
from salvor.approval import giving, places
from salvor.show import Plain

from tests.waiting import until
from tests.world import World

SECOND = "lee@there"


def ask_for_two(place: World, rule: str) -> None:
    """Let the service need a second person."""
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("messages: post\n", f"messages: post\n    second_person: {rule}\n"))


@contextmanager
def restoring(place: World) -> Iterator[Future[str]]:
    """The first operator's command, at work beside the block; its result is what it said."""
    said = io.StringIO()

    def work() -> str:
        session = place.session()
        session.runner.watcher = Plain(said)
        console.recover(session, Plain(said), yes=True)
        return said.getvalue()

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def lines(place: World, *kinds: str) -> list[dict[str, Any]]:
    return [line for journal in place.journals() for line in journal.of(*kinds)]


def waits(place: World) -> Callable[[], bool]:
    """Whether the step before the one that waits has ended."""
    return lambda: any(line["step"] == "verify" and line["phase"] == "ended" for line in lines(place, "step"))


def the_incident(place: World) -> str:
    return place.journals()[0].folder.name


def approve(place: World, who: str = SECOND, key: str = "") -> None:
    """As somebody else, approve what is asked for."""
    assert until(lambda: lines(place, "asked"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALVOR_OPERATOR", who)
        giving.approve(the_incident(place), lines(place, "asked")[-1]["hash"], key, Plain())


def folder_of_approvals(place: World) -> Path:
    return place.journals()[0].folder / places.FOLDER


def keys_of_the_plan(place: World) -> list[str]:
    return [change["key"] for change in lines(place, "approved")[-1]["changes"]]
