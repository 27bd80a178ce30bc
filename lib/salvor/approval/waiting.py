"""How a step waits until a second person has approved what it would change."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from salvor import clock, durable
from salvor.approval import paper, places
from salvor.approval.paper import Checked, NotApprovedError
from salvor.approval.places import Place
from salvor.approval.settings import SecondPerson
from salvor.deadline import within
from salvor.errors import CannotError
from salvor.journal import ssh_signature

BETWEEN_LOOKS = 0.5
"""Seconds between two looks into the incident's folder."""
_FAR_BETWEEN = 3.0
_FAR_DEADLINE = 5.0
_FAR_PAUSE = 30.0
_TELL_EVERY = 60.0
_MOST_REFUSED = 20
_PASSING = (None, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""What is wrong with a place rather than with what lies there; None: whatever a bucket says."""
_COMMAND = "inv incident.approve --incident={}"


class Gate:
    """What a second person approved of the incident in `folder`, for `operator`, who acts. It believes no journal: it
    looks at the approvals themselves, again in each sitting.

    `plans` gives the hashes of the plans that this incident's operators approved: an approval of any other counts for
    nothing. `note` writes a line into the journal, `still_ours` raises when the service was taken over meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        operator: str,
        rule: SecondPerson,
        *,
        plans: Callable[[], Collection[str]],
        tell: Callable[[str], None],
        note: Callable[..., None],
        still_ours: Callable[[], None],
    ) -> None:
        self.rule = rule
        self._folder, self._operator = folder, operator
        self._plans, self._tell, self._note, self._still_ours = plans, tell, note, still_ours
        self._places = list(places.all_of(folder))
        self._seen: set[tuple[str, str]] = set()
        self._good: dict[str, tuple[Checked, bytes]] = {}
        self._next_look: dict[str, float] = {}
        self._refused = 0
        self._noted: set[str] = set()

    def find(self, keys: Collection[str]) -> Checked | None:
        """An approval of all the changes with these keys; noted in the journal when it is first found."""
        for place in self._places:
            if clock.monotonic() >= self._next_look.get(place.name, 0.0):
                self._look_into(place)
        for name, (each, content) in self._good.items():
            if each.said.hash in self._plans() and each.keys >= set(keys):
                if name not in self._noted:
                    self._noted.add(name)
                    self._keep(name, each, content)
                return each
        return None

    def wait(self, step: str, hash_: str, keys: Collection[str]) -> Checked:
        """An approval of these changes, as soon as there is one. Raises CannotError after the deadline; nothing of the
        step was done then.
        """
        begun, limit = clock.monotonic(), clock.write_duration(self.rule.within)
        tell_at = ask_at = 0.0
        while (found := self.find(keys)) is None:
            waited = clock.monotonic() - begun
            if waited >= self.rule.within:
                raise CannotError(
                    f"{step} waits for a second person, and nobody else approved the plan {hash_} within {limit}.",
                    safe=f"nothing of {step} was done; what was made ready stays",
                    hint=f"somebody else: {_COMMAND.format(self._folder.name)}; "
                    "then the same command again, which goes on from here",
                )
            if waited >= tell_at:
                left = clock.write_duration(self.rule.within - waited)
                self._tell(
                    f"{step} waits for a second person to approve the plan {hash_}, {left} at most.\n"
                    f"Somebody else than {self._operator}: {_COMMAND.format(self._folder.name)}"
                )
                tell_at = waited + _TELL_EVERY
            if waited >= ask_at:
                self._still_ours()
                ask_at = waited + _FAR_BETWEEN
            time.sleep(min(BETWEEN_LOOKS, max(0.01, self.rule.within - waited)))
        return found

    def _look_into(self, place: Place) -> None:
        self._next_look[place.name] = clock.monotonic() + (_FAR_BETWEEN if place.is_far else 0.0)
        try:
            for name, content in within(_FAR_DEADLINE, lambda: list(self._new(place))):
                self._seen.add((place.name, name))
                self._take(name, content)
        except OSError as error:
            self._next_look[place.name] = clock.monotonic() + _FAR_PAUSE
            self._tell(f"Whether there are approvals in {place.name} cannot be told now: {error}")

    def _new(self, place: Place) -> Iterator[tuple[str, bytes | str]]:
        """What was not looked at yet: its name, and its content or why it cannot be read."""
        for name in place.names():
            if (place.name, name) not in self._seen and name not in self._good:
                try:
                    yield name, place.store.get(name, most=paper.MOST_BYTES)
                except OSError as error:
                    if error.errno in _PASSING:
                        raise
                    yield name, str(error.strerror)

    def _take(self, name: str, content: bytes | str) -> None:
        try:
            if isinstance(content, str):
                raise NotApprovedError(content)
            checked = paper.check(name, content, self._folder.name, self.rule.signers)
            self._refuse_the_same(checked)
        except NotApprovedError as error:
            self._refused += 1
            if self._refused <= _MOST_REFUSED:
                self._tell(f"The approval {name} does not count: {error}.")
                self._note("refused", approval=name, why=str(error))
            return
        self._good[name] = checked, content

    def _refuse_the_same(self, checked: Checked) -> None:
        for who in {checked.who, checked.said.who}:
            if paper.is_same(who, self._operator):
                raise NotApprovedError(f"{who} acts here, and is no second person")
        if self.rule.people and not any(paper.is_same(checked.who, each) for each in self.rule.people):
            raise NotApprovedError(f"{checked.who} is none of those who may approve this")
        if checked.public and checked.public == _own_public_key():
            raise NotApprovedError("it is signed with the key of the one who acts here, who is no second person")

    def _keep(self, name: str, checked: Checked, content: bytes) -> None:
        """Note it in the journal, and keep it beside: it is evidence."""
        said = checked.said
        self._tell(
            f"{checked.who} approved the plan {said.hash} ({said.where})"
            + (f", signed with {checked.key}." if checked.key else ".")
        )
        data: dict[str, Any] = {"hash": said.hash, "who": checked.who, "where": said.where, "said_at": said.at}
        self._note("confirmed", **data, key=checked.key, approval=name)
        own = self._folder / places.FOLDER / name
        if not own.exists():
            try:
                durable.make_folder(own.parent)
                durable.replace(own, content)
            except OSError as error:
                self._tell(f"The approval {name} could not be kept in {own.parent}: {error.strerror}")


def _own_public_key() -> bytes | None:
    """The public key of the one who acts, as `ssh_signature.signer` gives it; None when it is not known."""
    key = ssh_signature.signing_key("")
    try:
        words = durable.read(Path(f"{key}.pub"), most=paper.MOST_BYTES).split()[:2] if key else []
    except OSError:
        return None
    return b" ".join(words) or None
