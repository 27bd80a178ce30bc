"""A tree or a single file of a host: backed up by restic, staged beside the live one, proven, and swapped in."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Literal

from salvor import clock, leftovers, unmounted
from salvor.archive import audit as archives
from salvor.archive.system import Archived
from salvor.backups.audit import Audited
from salvor.change import (
    ABSENT,
    UNSEEN,
    Backup,
    Change,
    Finding,
    Kept,
    Level,
    Progress,
    Reachable,
    Staged,
    State,
    Unread,
    Verdict,
    WayBack,
)
from salvor.errors import CannotError, SalvorError, UsageError, nothing_kept
from salvor.files import archived, audit, backing_up, locations, questions, snapshot
from salvor.files.look import Beside, Look, room_for
from salvor.files.manifest import Manifests
from salvor.files.place import Place
from salvor.files.restic import Repository
from salvor.files.said import short
from salvor.files.settings import FilesSettings
from salvor.on_a_machine import OnAMachine
from salvor.system import verb
from salvor.wish import Wish

_DAY = 24 * 3600.0


class Files(OnAMachine, Archived):
    """A tree or a single file of a host. What it does is in `salvor.files`; this ties it together."""

    Settings = FilesSettings
    settings: FilesSettings
    asked_by: ClassVar[Literal["sql", "ask"]] = "ask"

    @cached_property
    def place(self) -> Place:
        """The tree's path there, and what this incident has beside it."""
        return Place(self.shell, self.settings.path, self.context.incident)

    @cached_property
    def repositories(self) -> tuple[Repository, ...]:
        """Where its backups are, in the order of the inventory."""
        return tuple(
            Repository(
                one.name,
                one.location,
                self.shell,
                one.password,
                one.environment,
                locations.login(one.location, one.ssh),
            )
            for one in self.settings.repositories
        )

    @cached_property
    def manifests(self) -> Manifests:
        """What its snapshots hold."""
        return Manifests()

    @cached_property
    def seen(self) -> snapshot.Seen:
        """The snapshots that its repositories named a moment ago."""
        return snapshot.Seen()

    def repository(self, name: str) -> Repository:
        """The repository of that name. Raises UsageError."""
        for one in self.repositories:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.repositories) or "none"
        raise UsageError(f"{self.name} has no repository {name!r}.", hint=f"the inventory names: {known}")

    # --- look ----------------------------------------------------------------------------------------------------

    def observe(self) -> State:
        """What is live under the path, staged and kept, in one look. Gone is down, and so is what stands where its disk
        is not mounted; what cannot be asked is unknown.
        """
        address = self.settings.address or None
        try:
            look = self.place.look()
        except SalvorError as error:
            return State(Reachable.UNKNOWN, UNSEEN, None, error.what, address=address)
        return State(
            Reachable.UP if look.live and not look.unmounted else Reachable.DOWN,
            look.identity,
            look.live is not None and not look.is_fenced,
            self._summary(look),
            origin=look.origin,
            address=address,
            fresh=datetime.fromtimestamp(look.live.changed, UTC) if look.live and not look.live.is_folder else None,
            staged=tuple(self._staged(look)),
            kept=tuple(kept for one in look.beside if (kept := _kept(one, look))),
            details={"path": look.path, "mounts": list(look.mounts)},
        )

    def _summary(self, look: Look) -> str:
        disk = f"; {unmounted.told(look.unmounted)}" if look.unmounted else ""
        if look.live is None:
            return f"{look.path}: there is nothing{disk}"
        what = "a folder" if look.live.is_folder else f"a file of {look.live.size} bytes"
        return f"{look.path}: {what}{', fenced' if look.is_fenced else ''}{disk}"

    def _staged(self, look: Look) -> Iterator[Staged]:
        mine = self.place.mine(look)
        if mine is None or (look.live and mine.tree == look.live.identity):
            return
        taken = mine.marker.get("taken")
        if mine.staged or mine.building:
            yield Staged(
                snapshot.STAGE,
                mine.staged.identity if mine.staged else "",
                mine.whole,
                fresh=clock.read_time(taken) if taken else None,
                detail=f"in {mine.path}",
                backup=short(mine.marker["snapshot"]) if "snapshot" in mine.marker else None,
            )

    def unmovable(self, look: Look) -> str:
        """Why the tree cannot be renamed, or not where it belongs; empty when it can."""
        if look.unmounted:
            return (
                f"{unmounted.told(look.unmounted)}: the tree may be whole on it, and would be restored to the disk "
                f"below it; {unmounted.mend(look.unmounted, self.shell.where)}"
            )
        if look.mounts and look.mounts[0] == look.path:
            return f"{look.path} is a mount point, so it cannot be renamed; the tree must be a folder below it"
        if look.mounts:
            return f"{look.mounts[0]} is mounted inside {look.path}; describe each of the two as a tree of its own"
        if look.locked:
            paths = " ".join(map(shlex.quote, look.locked))
            return (
                f"chattr locked {paths} on {self.shell.where} (+i or +a), so not even root can swap it; there, before: "
                f"lsattr -d {paths}; chattr -ia {paths}"
            )
        if not look.can_write:
            folder = look.path.rpartition("/")[0] or "/"
            why = "see dmesg: a disk with errors is made so" if look.is_root else "or closed to this account"
            return f"{folder} on {self.shell.where} is read-only, {why}"
        return ""

    def backups(self) -> list[Backup]:
        """The snapshots in all repositories, and the archives that it is in, newest first."""
        sources: dict[tuple[str, str], Callable[[], list[Backup]]] = dict(snapshot.sources(self))
        if archives := self.settings.archives:
            sources[archives.folder, archives.folder] = lambda: archived.backups(self)
        found = self._list(sources)
        spoilt = [Unread(one.name, one.location, said) for one in self.repositories for said in one.spoilt]
        self.unread = [*self.unread, *spoilt]
        return found

    def ways_back(self, wish: Wish) -> list[WayBack]:
        """A snapshot or an archive, whichever loses less, or in the runbook's order; what is possible comes first."""
        try:
            look = self.place.look()
        except SalvorError as error:
            return [WayBack(name, False, error.reason) for name in (snapshot.NAME, archived.NAME)]
        found = [snapshot.way_back(self, look, wish), archived.way_back(self, look, wish)]
        found.sort(key=lambda way: inf if way.loses is None else way.loses)
        return wish.in_its_order(found)

    def verify(self, way: WayBack, wish: Wish) -> Iterator[Finding]:
        """Prove what is staged. Reads only."""
        if way.name == archived.NAME:
            yield from archived.verify(self, self.place.look(), wish)
        else:
            yield from snapshot.verify(self, self.place.look(), way, wish)

    @classmethod
    def check_question(cls, question: str) -> None:
        """Raises UsageError for what cannot be asked of a tree."""
        questions.check(question)

    def ask(self, statement: str, where: str) -> Any:
        """The figure that a question asks for, such as `files *.jpg`. `where`: live, a stage's name, `address:HOST`."""
        return questions.ask(self, statement, self.place.staged if where == snapshot.STAGE else self.place.real)

    def audit(self, *, deep: bool) -> Iterator[Audited]:
        """Its repositories and archives: their integrity, room and permissions."""
        yield from audit.look(self, deep=deep)

    def redundancy(self, tell: Callable[[str], object] = lambda said: None) -> Iterator[Change]:
        """A backup of what is live now, when no repository has one that is as young as it."""
        yield from backing_up.redundancy(self)

    # --- act -----------------------------------------------------------------------------------------------------

    @verb(deadline=60.0)
    def fence(self, identity: str) -> None:
        """Let nobody but root into the tree with that identity, so that it survives a restart."""
        look = self.place.look()
        if look.live is None or look.is_fenced:
            return
        if look.identity != identity:
            raise self._another(look, identity)
        self.place.fence(look.live)

    @verb(deadline=60.0)
    def unfence(self, identity: str) -> None:
        """Give the tree its mode again, wherever it stands. What is not there any more needs nothing."""
        look = self.place.look()
        if look.fence.get("identity") == identity:
            self.place.unfence(look.fence, look)

    @verb(deadline=_DAY)
    def stage(self, stage: str, **arguments: Any) -> Iterator[Progress | Finding]:
        """Build a copy beside what is live: from a snapshot (path, copies), or an archive (source, member)."""
        if stage != snapshot.STAGE:
            raise UsageError(f"{self.name}: there is no stage {stage!r}.", hint=f"it is {snapshot.STAGE}")
        look = self.place.look()
        mine = self.place.mine(look)
        if look.origin == self.context.incident:
            return
        if mine and mine.marker.get("wanted") == arguments:
            if mine.whole:
                return
            built = str(mine.marker["built"])
            if self.place.identity_of(built) == mine.tree:  # killed between its last two acts
                self.place.place_built(built)
                return
        if reason := self.unmovable(look):
            raise CannotError(f"{self.name}: {reason}.", safe="nothing was changed")
        room_for(look, self.shell.where, None, None)
        folder = look.path.rpartition("/")[0] or "/"
        if not self.shell.exists(folder):
            detail = f"on {self.shell.where}: chown and chmod {shlex.quote(folder)} as it was; it gets mode 755"
            yield Finding(self.name, "folder", Level.WARN, f"{folder} was gone, and is made anew", detail=detail)
        build = archived.build if "source" in arguments else snapshot.build
        built, noted = yield from build(self, **arguments)
        yield Progress(0, None, "", "flushing it to disk")
        self.place.finish(built, {"incident": self.context.incident, "wanted": arguments, **noted})

    @verb(deadline=3600.0, destructive=True)
    def drop(self, stage: str) -> None:
        """Remove this incident's stage. Refuses what is live or kept, which stand elsewhere."""
        look = self.place.look()
        mine = self.place.mine(look)
        if stage == snapshot.STAGE and mine and not (look.live and mine.tree == look.live.identity):
            leftovers.end(self.shell, self.place.building, self.place.building)
            self.place.drop()

    @verb(deadline=120.0)
    def promote(self, identity: str, stage: str) -> Iterator[Progress]:
        """Make the staged tree what is live in the place of `identity`, which is kept."""
        look = self.place.look()
        mine = self.place.mine(look)
        if mine and look.live and mine.tree == look.live.identity:
            if mine.staged:  # killed after the swap
                self.place.move_to_kept()
            return
        if mine is None or not mine.whole:
            raise CannotError(
                f"There is no whole stage of this incident beside {look.path}.",
                safe="what is live is as it was",
                hint="run the same command again: it stages first",
            )
        if look.identity not in (identity, ABSENT) and identity != ABSENT:
            raise self._another(look, identity)
        yield Progress(0, None, "", "swapping")
        self.place.swap(self.place.staged, self.place.kept, replaces=look.live is not None)

    @verb(deadline=120.0)
    def demote(self, identity: str, stage: str) -> Iterator[Progress]:
        """Put back what `promote` replaced; what it promoted is the stage again."""
        look = self.place.look()
        mine = self.place.mine(look)
        if mine and mine.kept and mine.kept.identity == mine.tree:  # killed after the swap
            self.place.move_to_staged()
            return
        if look.identity == identity or (mine and mine.whole and not mine.kept):
            return
        if mine is None or (look.live and mine.tree != look.live.identity):
            raise self._another(look, identity)
        yield Progress(0, None, "", "swapping back")
        if mine.staged and not mine.whole:  # killed after the swap of the promotion
            self.place.move_to_kept()
        if mine.kept or (mine.staged and not mine.whole):
            self.place.swap(self.place.kept, self.place.staged, replaces=look.live is not None)
        elif identity != ABSENT:
            raise nothing_kept(self.place.kept, self.context.incident)
        else:
            self.place.put_away(self.place.staged)

    @verb(deadline=6 * 3600.0, destructive=True)
    def discard(self, identity: str, kept: str) -> Iterator[Progress]:
        """Remove what was kept of an incident, for good."""
        incident = kept.removeprefix("kept-")
        look = self.place.look()
        found = next((one for one in look.beside if one.incident == incident), None)
        thing = _kept(found, look) if found else None
        if found is None or thing is None:
            return
        if thing.identity != identity:
            raise CannotError(
                f"What {found.path} keeps is {thing.identity}, not {identity}; it was not removed.",
                hint="look again: inv assess",
            )
        yield Progress(0, None, "", f"removing {found.path}/kept")
        place = Place(self.shell, self.settings.path, incident)
        if found.staged:
            place.move_to_kept()
        place.discard()
        if look.fence.get("identity") == identity:
            self.place.forget_fence()

    @verb(deadline=_DAY)
    def backup(self, kind: str) -> Iterator[Progress | Finding]:
        """Back up what is live to every repository; one success is needed."""
        yield from backing_up.back_up(self)

    def pack(self, scratch: Path) -> Iterator[bytes]:
        """What is live, as a tar stream, for an archive of the whole platform."""
        yield from archived.pack(self)

    def expiry(self, verdicts: Sequence[Verdict]) -> Iterator[Change]:
        """What the policy lets go. restic cannot be asked for the object lock of its bucket, so that is said."""
        in_s3 = {one.name for one in self.settings.repositories if one.location.startswith("s3:")}
        for change in super().expiry(verdicts):
            unknown = "; until when an object lock of its bucket keeps them, hidden, is not known"
            yield replace(change, why=change.why + unknown) if change.arguments["repository"] in in_s3 else change

    @verb(deadline=_DAY, destructive=True)
    def expire(self, repository: str, backups: list[str]) -> Iterator[Progress]:
        """Remove these snapshots from a repository, or these archives, for good."""
        if self.settings.archives and repository == self.settings.archives.folder:
            yield from archives.remove(self.settings.archives, self.shell, backups)
        else:
            backing_up.expire(self, repository, backups)

    def _another(self, look: Look, identity: str) -> CannotError:
        return CannotError(
            f"{self.name}: {look.path} is {look.identity} now, and not {identity}: somebody replaced it.",
            safe="nothing was changed",
            hint="inv assess; what is there now is a new incident",
        )


def _kept(beside: Beside, look: Look) -> Kept | None:
    """What an incident keeps of what was live before it; also when a call was killed right after the swap."""
    thing = beside.kept
    if thing is None and beside.staged and look.live and beside.tree == look.live.identity:
        thing = beside.staged
    if thing is None or thing.identity == beside.tree:
        return None
    return Kept(f"kept-{beside.incident}", thing.identity, beside.incident)
