"""The way back `snapshot`: a restic snapshot, from the first repository that can give it, restored beside the tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from salvor import clock, leftovers
from salvor.change import Backup, Finding, Level, Progress, Undo, WayBack
from salvor.errors import CannotError
from salvor.files import proof, restoring
from salvor.files.look import Look, room_for
from salvor.files.restic import Repository
from salvor.files.said import MissingError, Snapshot, short
from salvor.files.watching import DiskFullError
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.systems.files import Files

NAME = "snapshot"
STAGE = "side-tree"
_BELIEVED = 60.0
_ID = re.compile(r"[0-9a-f]{6,64}")


class _Closed(Exception):
    """Why the way is not open."""


Answers = Mapping[str, Sequence[Snapshot] | CannotError]
"""What each repository said, in the order of the inventory: its snapshots of the tree, newest first, or why not."""


def ask_all(repositories: Sequence[Repository]) -> Answers:
    """Ask the repositories side by side: one that does not answer costs its deadline once."""

    def ask(repository: Repository) -> Sequence[Snapshot] | CannotError:
        try:
            return repository.snapshots()
        except CannotError as error:
            return error

    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="repository") as pool:
        return dict(zip([one.name for one in repositories], pool.map(ask, repositories), strict=True))


class Seen:
    """Snapshots that a repository named less than a minute ago: whoever restores one then need not ask again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, Snapshot]] = {}

    def note(self, snapshots: Sequence[Snapshot]) -> None:
        """Note what a repository named just now."""
        now = clock.monotonic()
        self._known.update({(one.repository, one.id): (now, one) for one in snapshots})

    def all_of(self, copies: Sequence[Mapping[str, str]]) -> Answers | None:
        """What the repositories of `copies` would answer of these; None when they must be asked."""
        found = [self._known.get((copy["repository"], copy["snapshot"])) for copy in copies]
        if not all(one and clock.monotonic() - one[0] < _BELIEVED for one in found):
            return None
        return {one[1].repository: [one[1]] for one in found if one}


def of_tree(answers: Answers, name: str, look: Look) -> list[Snapshot]:
    """The snapshots of this tree, newest first, of one moment in the order of the repositories.

    Ours say by a tag whose they are. Others', such as a cron job's, are its when they hold its path and were made on
    its host: machines that share a repository have the same paths.
    """
    found = [snapshot for said in answers.values() if not isinstance(said, CannotError) for snapshot in said]
    mine = [
        one
        for one in found
        if one.owner == name or (not one.owner and one.hostname == look.hostname and one.holds(look.path))
    ]
    filled = min((one.taken for one in mine if one.size), default=None)
    marked = [replace(one, emptied=one.size == 0 and filled is not None and one.taken > filled) for one in mine]
    return sorted(marked, key=lambda one: one.taken, reverse=True)


def sources(system: Files) -> Iterator[tuple[tuple[str, str], Callable[[], list[Backup]]]]:
    """What lists the snapshots of the tree, by its repositories' names and locations; all were asked side by side."""
    answers = ask_all(system.repositories)
    if not system.repositories:
        return
    look = system.place.look()
    for one in system.repositories:
        yield (one.name, one.location), partial(_backups, system.name, one, answers[one.name], look)


def _backups(name: str, repository: Repository, said: Sequence[Snapshot] | CannotError, look: Look) -> list[Backup]:
    """Every snapshot of the tree that one repository named. Raises what it said instead."""
    if isinstance(said, CannotError):
        raise said
    return [
        Backup(
            id=one.short,
            system=name,
            way=NAME,
            kind="snapshot",
            taken=one.taken,
            size=one.size or 0,
            location=repository.location,
            repository=one.repository,
            fingerprint={"tree": one.tree},
            usable=not one.unusable,
            detail=one.unusable,
        )
        for one in of_tree({repository.name: said}, name, look)
    ]


def way_back(system: Files, look: Look, wish: Wish) -> WayBack:
    """The newest snapshot, the newest one before the damage or not later than the time asked for, or the one named."""
    try:
        return _way_back(system, look, wish)
    except _Closed as reason:
        return WayBack(NAME, False, str(reason))
    except CannotError as error:
        return WayBack(NAME, False, error.reason)


def _way_back(system: Files, look: Look, wish: Wish) -> WayBack:
    if wish.target:
        raise _Closed(f"a tree has no {wish.target.partition(':')[0]} to go back to; name a time with --at")
    if wish.source != "latest" and not _ID.fullmatch(wish.source):
        raise _Closed(f"{wish.source} is no snapshot's id")
    if not system.repositories:
        raise _Closed("the inventory names no repositories")
    if reason := system.unmovable(look):
        raise _Closed(reason)
    answers = ask_all(system.repositories)
    chosen, copies = _choose(system, of_tree(answers, system.name, look), answers, wish)
    system.seen.note(copies)
    room_for(look, system.shell.where, chosen.size, chosen.files)
    path = chosen.paths[0] if chosen.owner else look.path
    passed_over = "".join(
        f"; {name} is passed over: {said.what}" for name, said in answers.items() if isinstance(said, CannotError)
    )
    passed_over += "".join(
        f"; {one.name}: {said}; it may be newer" for one in system.repositories for said in one.spoilt
    )
    swapped = "one exchange of names" if look.exchange else "two renames, as its host has neither perl nor python3"
    return WayBack(
        NAME,
        True,
        f"snapshot {chosen.short} of {clock.write_time(chosen.taken)} from {copies[0].repository}, "
        f"swapped in by {swapped}{passed_over}",
        stage=STAGE,
        address=system.settings.address or None,
        backup=chosen.short,
        arguments={
            "stage": STAGE,
            "path": path,
            "copies": [{"repository": one.repository, "snapshot": one.id} for one in copies],
        },
        promote={"identity": look.identity, "stage": STAGE},
        promote_undo=Undo("demote", {"identity": look.identity, "stage": STAGE}),
        loses=wish.loses(chosen.taken),
    )


def _choose(
    system: Files, found: Sequence[Snapshot], answers: Answers, wish: Wish
) -> tuple[Snapshot, Sequence[Snapshot]]:
    """The snapshot, and its copies of the same run in the order in which the repositories are tried."""
    unread = [f"{name}: {said.what}" for name, said in answers.items() if isinstance(said, CannotError)]
    unread += [f"{one.name}: {said}" for one in system.repositories for said in one.spoilt]
    silent = "; ".join(unread)
    if not found:
        raise _Closed(silent or f"no repository has a snapshot of {system.settings.path}")
    if wish.source != "latest":
        fitting = [one for one in found if one.id.startswith(wish.source)]
        if not fitting:
            raise _Closed(f"no repository has the snapshot {wish.source} of it{f' ({silent})' if silent else ''}")
    else:
        fitting = [one for one in found if not one.unusable]
        if wish.at:
            fitting = [one for one in fitting if one.taken <= wish.at]
        elif wish.damaged_at:
            fitting = [one for one in fitting if one.taken < wish.damaged_at]
        if not fitting:
            oldest = clock.write_time(found[-1].taken)
            raise _Closed(
                f"no whole snapshot is old enough: the oldest is of {oldest}{f' ({silent})' if silent else ''}"
            )
        fitting.sort(key=lambda one: clock.is_to_come(one.taken))  # only when there is no other
    chosen = fitting[0]
    # of one moment, in the order of the inventory; a named one first
    copies = [one for one in fitting if one.taken == chosen.taken and one.paths == chosen.paths]
    if wish.source != "latest":
        others = [one for one in found if one.taken == chosen.taken and one.owner and one.id != chosen.id and one.whole]
        copies = [chosen, *others]
    return copies[0], copies


def build(
    system: Files, path: str, copies: Sequence[Mapping[str, str]]
) -> Generator[Progress, None, tuple[str, dict[str, Any]]]:
    """Restore the snapshot below the folder for what is being built, from the first repository that can give it.

    Returns the path of what was built, and what the marker is to say of it. Raises CannotError when none could.
    """
    failures: list[str] = []
    answers = system.seen.all_of(copies) or ask_all(system.repositories)
    for copy in copies:
        said = answers.get(copy["repository"], ())
        if isinstance(said, CannotError):
            failures.append(said.what)
            continue
        snapshot = next((one for one in said if one.id == copy["snapshot"]), None)
        if snapshot is None:
            failures.append(f"{copy['repository']} has no snapshot {short(copy['snapshot'])} any more")
            continue
        _begin(system)
        room_for(system.place.look(), system.shell.where, snapshot.size, snapshot.files)
        repository, alone = system.repository(copy["repository"]), snapshot.paths == (path,)
        system.manifests.of(repository, snapshot.id, path).ask_ahead(alone=alone, size=snapshot.size)
        try:
            verified = yield from _restored(system, repository, snapshot, path)
        except DiskFullError:
            system.place.drop()  # what is live may need the room
            raise
        except CannotError as error:
            failures.append(error.what)
            yield Progress(0, None, "", f"{copy['repository']} could not give it")
            continue
        noted = {
            "repository": snapshot.repository,
            "snapshot": snapshot.id,
            "taken": clock.write_time(snapshot.taken),
            "path": path,
            "read_back": verified,
            "size": snapshot.size,
            "alone": alone,
            "passed_over": failures,
        }
        return f"{system.place.building}{path}", noted
    raise CannotError(
        f"{system.name}: no repository could give the snapshot: {'; '.join(failures)}",
        safe="what is live is as it was",
        hint=f"see to the repositories and run the same command again; or name another backup with --from: "
        f"inv backups lists those of {system.name}",
    )


def _begin(system: Files) -> None:
    leftovers.end(system.shell, system.place.building, system.place.building)
    system.place.begin()


def _restored(system: Files, repository: Repository, snapshot: Snapshot, path: str) -> Generator[Progress, None, int]:
    """Restore it, once more where a piece was missing that a prune may have moved. Raises as `restoring.restore`."""
    try:
        return (yield from restoring.restore(repository, snapshot, path, system.place.building))
    except MissingError:
        yield Progress(0, None, "", f"{repository.name} lacks a piece; once more, as a prune may have moved it")
    _begin(system)
    return (yield from restoring.restore(repository, snapshot, path, system.place.building))


def verify(system: Files, look: Look, way: WayBack, wish: Wish) -> Iterator[Finding]:
    """Prove the staged tree against the snapshot that it was restored from."""
    yield from proof.of_snapshot(system, look, wish)
    mine = system.place.mine(look)
    for reason in mine.marker.get("passed_over", ()) if mine else ():
        yield Finding(system.name, "repositories", Level.WARN, "one could not give it", detail=reason)
