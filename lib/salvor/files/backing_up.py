"""Backing a tree up to all of its repositories at once: one success is needed, and what failed is said."""

from __future__ import annotations

import queue
import shlex
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from salvor import clock, unmounted
from salvor.change import Change, Finding, Level, Progress
from salvor.errors import CannotError, SalvorError
from salvor.files import census, making, snapshot, storing
from salvor.files.look import Look
from salvor.files.restic import Repository

if TYPE_CHECKING:
    from salvor.systems.files import Files


def back_up(system: Files) -> Iterator[Progress | Finding]:
    """Back up what is live to every repository, side by side; one that is not there is made. Names those that did not
    take it, and those that were made although others have earlier backups. Raises CannotError when none has it.
    """
    look = system.place.look()
    refuse_unmounted_or_broken(system, look, "it was not backed up")
    if not system.repositories:
        raise CannotError(f"{system.name} has no repositories.", hint="name one in the inventory: repositories:")
    yield Progress(0, None, "", "counting")
    contents = census.count(system.shell, look.path)
    if contents.size == 0:
        refuse_emptied(system, look, "it was not backed up")
    taken = clock.now()
    said: queue.Queue[tuple[str, Progress | BaseException | None]] = queue.Queue()

    made: list[Repository] = []

    def work(repository: Repository) -> None:
        ended: BaseException | None = None
        try:
            if making.make(repository):
                made.append(repository)
            for progress in storing.back_up(repository, look.path, system.name, taken, contents):
                said.put((repository.name, progress))
        except BaseException as error:  # noqa: BLE001  told below, in the thread that asked
            ended = error
        said.put((repository.name, ended))

    for repository in system.repositories:
        threading.Thread(target=work, args=(repository,), daemon=True).start()
    running, done, errors = len(system.repositories), dict[str, int](), dict[str, BaseException]()
    while running:
        name, news = said.get()
        if isinstance(news, Progress):
            done[name] = news.done
            yield Progress(sum(done.values()), contents.size * len(system.repositories), "bytes", news.label)
        else:
            running -= 1
            if news is not None:
                errors[name] = news
    if unexpected := next((error for error in errors.values() if not isinstance(error, SalvorError)), None):
        raise unexpected
    reasons = {name: getattr(error, "what", str(error)) for name, error in errors.items()}
    if len(errors) == len(system.repositories):
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise CannotError(
            f"{system.name}: no repository took the backup: {told}",
            safe="the backups that are there stay",
            hint=f"see to one of them, then the same command again; {getattr(next(iter(errors.values())), 'hint', '')}",
        )
    for name, reason in reasons.items():
        yield Finding(system.name, "backup", Level.WARN, f"{name} does not have it", detail=reason)
    yield from _new(system, made)
    succeeded = len(system.repositories) - len(errors)
    yield Progress(0, None, "", f"{succeeded} of {len(system.repositories)} repositories have it")


def refuse_unmounted_or_broken(system: Files, look: Look, so: str) -> None:
    """Raise CannotError when what is live is not the tree, or a broken one; `so` is what follows from it, in words."""
    if look.unmounted:
        raise CannotError(
            f"{system.name}: {unmounted.told(look.unmounted)}, so {look.path} is not what it should be; {so}.",
            safe="the backups that are there stay",
            hint=unmounted.mend(look.unmounted, system.shell.where),
        )
    if look.live is None or look.is_fenced:
        what = "is fenced: it is broken" if look.live else "is not there"
        raise CannotError(f"{system.name}: {look.path} {what}; {so}.", hint="inv assess")


def refuse_emptied(system: Files, look: Look, so: str) -> None:
    """Raise CannotError where a backup holds something: a tree without a byte may be waiting for its disk."""
    found = snapshot.of_tree(snapshot.ask_all(system.repositories), system.name, look)
    if fuller := next((one for one in found if one.size), None):
        path = shlex.quote(look.path)
        raise CannotError(
            f"{system.name}: {look.path} holds nothing, and its backup {fuller.short} of "
            f"{clock.write_time(fuller.taken)} holds {fuller.size:,} bytes; {so}.",
            safe="the backups that are there stay",
            hint=f"on {system.shell.where}: findmnt -T {path} says whether its disk is mounted; if it was emptied, "
            "inv restore; if it is right so, write something into it, then the same command again",
        )


def _new(system: Files, made: Sequence[Repository]) -> Iterator[Finding]:
    """Those made now, where others have earlier backups of the tree: an empty folder may wait for its disk."""
    if not made:
        return
    found = snapshot.of_tree(snapshot.ask_all(system.repositories), system.name, system.place.look())
    earlier = {one.repository for one in found if one.taken < found[0].taken}
    for one in made:
        if others := ", ".join(sorted(earlier - {one.name})):
            figure = f"{one.name} was empty, and a new repository was made there"
            detail = f"{others} has earlier backups; see that the disk of {one.location} is mounted, where it has one"
            yield Finding(system.name, "backup", Level.WARN, figure, detail=detail)


def redundancy(system: Files) -> Iterator[Change]:
    """A backup, when a repository that answers has none of what is live. Raises CannotError when all that answer have
    it, and one does not.
    """
    look = system.place.look()
    if look.live is None or look.is_fenced or not system.repositories:
        return
    origin = next((one for one in look.beside if one.incident == look.origin), None)
    since = float(origin.marker.get("sealed", 0)) if origin else 0.0
    answers = snapshot.ask_all(system.repositories)
    mine = snapshot.of_tree(answers, system.name, look)
    lacking = [
        name
        for name, said in answers.items()
        if not isinstance(said, CannotError)
        and not any(one.repository == name and one.is_good and one.taken.timestamp() >= since for one in mine)
    ]
    if lacking:
        yield system.change(
            "backup",
            kind="snapshot",
            why=f"there is no backup of what is live now in {', '.join(lacking)}",
            no_undo="it only adds a backup; the policy removes it",
        )
        return
    silent = {name: said for name, said in answers.items() if isinstance(said, CannotError)}
    if silent:
        told = "; ".join(f"{name}: {said.what}" for name, said in silent.items())
        raise CannotError(
            f"{system.name}: whether there is a backup of what is live now in {', '.join(silent)} cannot be told: "
            f"{told}",
            safe="nothing was changed",
            hint=next(iter(silent.values())).hint,
        )


def expire(system: Files, repository: str, ids: Sequence[str]) -> None:
    """Remove snapshots from one repository. Raises CannotError when nothing elsewhere would be left of a new one.

    Of a repository on a disk of the tree's own host nothing goes while no other one has the newest backup.
    """
    one = system.repository(repository)
    if one.location.startswith("/") and len(system.repositories) > 1:
        found = snapshot.of_tree(snapshot.ask_all(system.repositories), system.name, system.place.look())
        good = [each for each in found if each.is_good]
        holders = {each.repository for each in good if each.taken == good[0].taken}
        if len(holders) < 2:
            raise CannotError(
                f"{system.name}: only {', '.join(holders) or 'nothing'} has the newest backup; two must have it before "
                f"anything is removed from {repository}.",
                safe="nothing was removed",
                hint="inv backup, and see what the other repositories say",
            )
    storing.forget(one, ids)
