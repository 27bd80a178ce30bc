"""A kind of system for tests: a folder of files as a database, with real renames on a real disk.

`<root>/live` is what is live, `<root>/backups/<id>` the backups, `<root>/fence` the fence. Small and quick, so that the
runner, the journal and the resuming of a chain can be tried hundreds of times. See `tests.trouble` for how a verb gets
into trouble.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from salvor import system
from salvor.change import Backup, Change, Finding, Kept, Level, Progress, Reachable, Staged, State, Undo, WayBack
from salvor.errors import CannotError
from salvor.roles import Restorable
from salvor.system import verb
from salvor.wish import Wish

from tests import trouble


class Settings(system.Settings):
    root: Path
    goes_back: bool = True
    closed: str = ""
    loses: float | None = None
    with_room_loses: float | None = None
    taken: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    lacks: float | None = None
    """What a proof of its backup knows to be missing, in seconds."""

    @property
    def places(self) -> frozenset[str]:
        return frozenset({str(self.root)})


class Folder(Restorable):
    """The folder kind."""

    Settings = Settings

    @property
    def root(self) -> Path:
        return Path(self.settings.root)

    @property
    def live(self) -> Path:
        return self.root / "live"

    def _stage(self) -> Path:
        return self.root / f"stage-{self.context.incident}"

    def _kept(self) -> Path:
        return self.root / f"kept-{self.context.incident}"

    @staticmethod
    def _identity(path: Path) -> str:
        return f"inode:{path.stat().st_ino}" if path.exists() else "absent"

    @staticmethod
    def _read(path: Path) -> str | None:
        return path.read_text() if path.exists() else None

    def observe(self) -> State:
        staged: tuple[Staged, ...] = ()
        if self._stage().exists():
            whole = (self._stage() / "origin").exists()
            of = {"backup": self._read(self._stage() / "backup") or ""}
            staged = (Staged("side-folder", self._identity(self._stage()), whole, fresh=self.settings.taken, of=of),)
        kept = tuple(
            Kept(path.name, self._identity(path), path.name.removeprefix("kept-")) for path in self.root.glob("kept-*")
        )
        fenced = self._read(self.root / "fence") == self._identity(self.live)
        return State(
            Reachable.UP if (self.live / "data").exists() else Reachable.DOWN,
            self._identity(self.live),
            None if (self.root / "hangs").exists() else self.live.exists() and not fenced,
            "a folder",
            origin=self._read(self.live / "origin"),
            address="127.0.0.1",
            staged=staged,
            kept=kept,
            misdescribed=("its tool is not there",) if (self.root / "without-tool").exists() else (),
        )

    def backups(self) -> list[Backup]:
        return [
            Backup(path.name, self.name, "copy", "full", datetime(2026, 1, 1, tzinfo=UTC), 1, str(path))
            for path in sorted((self.root / "backups").glob("*"), reverse=True)
        ]

    def ways_back(self, wish: Wish) -> list[WayBack]:
        found = [backup for backup in self.backups() if wish.source in ("latest", backup.id)]
        identity, goes_back, closed = self._identity(self.live), self.settings.goes_back, self.settings.closed
        if not found:
            return [WayBack("copy", False, f"no backup {wish.source}")]
        with_room = self.settings.with_room_loses
        lacking = [] if with_room is None else [
            WayBack("replay", False, "it needs 9 MB, where 1 MB are free", loses=with_room, lacks_room=True)
        ]  # fmt: skip
        return [
            *lacking,
            WayBack(
                "copy", not closed, closed or f"backup {found[0].id}", stage="side-folder", backup=found[0].id,
                arguments={"stage": "side-folder", "backup": found[0].id},
                promote={"identity": identity, "stage": "side-folder"},
                promote_undo=Undo("demote", {"identity": identity}) if goes_back else None,
                promote_no_undo="" if goes_back else "this folder never goes back", loses=self.settings.loses,
            )
        ]  # fmt: skip

    def verify(self, way: WayBack, wish: Wish) -> Iterator[Finding]:
        backup = self.root / "backups" / str(way.backup) / "data"
        same = (self._stage() / "data").read_bytes() == backup.read_bytes()
        level, evidence = Level.PASS if same else Level.FAIL, self._identity(self._stage())
        yield Finding(self.name, "content", level, evidence=evidence, lacks=self.settings.lacks)

    def ask(self, statement: str, where: str) -> Any:
        path = (self._stage() if where == "side-folder" else self.live) / "data"
        if not path.exists():
            raise CannotError(f"{path} is not there.")
        return path.read_text().count(statement)

    def apply(self, change: Change) -> Iterator[Progress | Finding]:
        with trouble.around(self.root.parent, self.name, change.verb):
            yield from super().apply(change)

    @verb(deadline=5)
    def fence(self, identity: str) -> None:
        if self._identity(self.live) == identity:
            (self.root / "fence").write_text(identity)

    @verb(deadline=5)
    def unfence(self, identity: str) -> None:
        if self._read(self.root / "fence") == identity:
            (self.root / "fence").unlink()

    @verb(deadline=5)
    def stage(self, stage: str, backup: str) -> Iterator[Progress]:
        is_whole = (self._stage() / "origin").exists() and self._read(self._stage() / "backup") == backup
        if is_whole or self._read(self.live / "origin") == self.context.incident:
            return
        shutil.rmtree(self._stage(), ignore_errors=True)
        self._stage().mkdir()
        (self._stage() / "backup").write_text(backup)
        shutil.copy(self.root / "backups" / backup / "data", self._stage() / "data")
        for _ in trouble.slowly(self.root.parent, self.name, "stage"):
            yield Progress(0, 1, "files")
        yield Progress(1, 1, "files")
        (self._stage() / "origin").write_text(self.context.incident)

    @verb(deadline=5)
    def drop(self, stage: str) -> None:
        shutil.rmtree(self._stage(), ignore_errors=True)

    @verb(deadline=5)
    def promote(self, identity: str, stage: str) -> None:
        if self._read(self.live / "origin") == self.context.incident:
            return
        if self.live.exists():
            self.live.rename(self._kept())
        self._stage().rename(self.live)

    @verb(deadline=5)
    def demote(self, identity: str) -> None:
        if self._read(self.live / "origin") == self.context.incident:
            self.live.rename(self._stage())
        if self._kept().exists() and not self.live.exists():
            self._kept().rename(self.live)

    @verb(deadline=5, destructive=True)
    def discard(self, identity: str, kept: str) -> None:
        shutil.rmtree(self.root / kept, ignore_errors=True)
