"""Which members of an archive become the tree, and under which names. What could reach out of it is refused by name."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import NoReturn

from salvor.archive.members import normal
from salvor.errors import CannotError

TRUST_ARCHIVE = "trust-archive"
"""The override that takes links which lead out of the tree, names with line breaks, and any ratio of compression: who
made the archive is known. Nothing is ever written outside of the stage.
"""
_FOLDER, _FILE, _LINK = "d", "f", "l"
_BLOCK = 4096
_RATIO, _RATIO_FROM = 250, 64 << 20
"""How many times what was read may be unpacked, from so many bytes on. Texts reach 20, gzip itself at most 1032."""
_OR_TRUST = f"use another archive; or, if who made it is known: --override='{TRUST_ARCHIVE}=REASON'"
_SAFE = "nothing outside of the stage was touched; what is live is as it was"
_LOOPS = 40
_NAME_MAX, _PATH_MAX = 255, 4000
"""Bytes of one name, and of a path below the stage, which is opened by less than the 4096 that Linux takes."""
_SHOWN = 200
_NAMED, _REMEMBERED = 12, 10_000
_DATED = re.compile(r"\d{8}_\d{6}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the tree that was unpacked. `path` is relative, empty for the root; `kind` f, d or l.

    `mtime` in seconds; `target` of a link; `same_as`: the file that it is another name of.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    sha256: bytes = b""
    target: str = ""
    same_as: str | None = None


@dataclass(frozen=True)
class Terms:
    """What the place to unpack in has: `free` bytes, and numbers of users and groups by name. `home` is the live path
    of the tree: an absolute link to something in it does not lead out.
    """

    free: int
    users: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    home: str = ""
    trusted: bool = False


class Names:
    """The names in one archive, as they come."""

    def __init__(self, archive: str, stem: str) -> None:
        """`stem` is the archive's name without endings: a folder of that name around everything is passed over."""
        self.archive = archive
        self._stem = stem
        self._around: str | None = None
        self._tops: dict[str, None] = {}

    def take(self, info: tarfile.TarInfo) -> str:
        """A member's path. Raises CannotError, naming it, when that could lead out of the folder it is unpacked in."""
        try:
            name = normal(info.name)
        except ValueError as error:
            hint = "it was not made by backing up a platform; use another one"
            raise refused(self.archive, info, str(error), hint) from error
        if name and self._around is None:
            around = name.partition("/")[0]
            self._around = f"{around}/" if around == self._stem or _DATED.search(around) else ""
        top = self.within(name, "")
        if top and len(self._tops) < _REMEMBERED:
            self._tops[top.partition("/")[0]] = None
        return name

    def within(self, name: str, member: str) -> str | None:
        """A path as it is within a member; None outside of it."""
        around = self._around or ""
        below = f"{member}/" if member else ""
        if not below.startswith(around) or not below:  # uploads.tar.gz may well hold uploads
            below = around + below
        if name == below.removesuffix("/"):
            return ""
        return name.removeprefix(below) if name.startswith(below) else None

    def may_be_past(self, member: str) -> bool:
        """Whether something of that member may have come already."""
        top = member.partition("/")[0]
        return len(self._tops) >= _REMEMBERED or top in self._tops or f"{top}/" == self._around

    def without(self, member: str) -> CannotError:
        """That the member is not in it; what stands on top is named."""
        tops = ", ".join(map(repr, [*self._tops][:_NAMED])) or "nothing"
        return CannotError(
            f"{self.archive} has no {member!r} in it; it has {tops}.",
            safe="what is live is as it was",
            hint="see archives: member in the inventory, or use another archive",
        )


class Vetting:
    """Goes through the members of one archive for one of them, `member`: a file, or a folder with all below it."""

    def __init__(self, names: Names, member: str, terms: Terms) -> None:
        self.entries: dict[str, Entry] = {}
        self.unpacked = 0
        """Bytes of content that were taken."""
        self._names, self._member, self._terms = names, member, terms
        self._archive = names.archive
        self._room = terms.free
        self._crooked: list[str] = []

    def take(self, info: tarfile.TarInfo, name: str) -> Entry | None:
        """What this member becomes, of which `Names.take` gave the name; None when it belongs to something else.

        A regular file's content is to be `weigh`ed, and its checksum `note`d. Raises CannotError, naming the member.
        """
        path = self._names.within(name, self._member)
        if path is None:
            return None
        if "\n" in path and not self._terms.trusted:
            self._refuse(info, "has a line break in its name", _OR_TRUST)
        encoded = os.fsencode(path)
        if len(encoded) > _PATH_MAX or max(map(len, encoded.split(b"/"))) > _NAME_MAX:
            self._refuse(info, f"has a longer name than disks take ({_NAME_MAX} bytes, {_PATH_MAX} with its folders)")
        self._see_parents(info, path)
        known = self.entries.get(path)
        entry = self._entry(info, path)
        if known and not (known.kind == _FOLDER and entry.kind == _FOLDER):
            self._refuse(info, "is in it twice", "use another archive; of two, nobody can tell which one is right")
        self._see_room(info, entry)
        self.entries[path] = entry
        return entry

    def weigh(self, info: tarfile.TarInfo, size: int, position: int) -> None:
        """So much more of a file was unpacked, of `position` bytes of the archive. Raises CannotError for a bomb."""
        self.unpacked += size
        if self.unpacked > max(_RATIO_FROM, _RATIO * position) and not self._terms.trusted:
            self._refuse(info, f"unpacks to {_RATIO} times of what it was packed to, and more", _OR_TRUST)

    def note(self, path: str, sha256: bytes) -> None:
        """The checksum of a regular file."""
        self.entries[path] = replace(self.entries[path], sha256=sha256)

    def finish(self) -> None:
        """The archive is over: see that the member was in it, and where links lead that can be told only now."""
        if not self.entries:
            raise self._names.without(self._member)
        for path in self._crooked:
            entry = self.entries[path]
            if self._terms.trusted:
                continue
            try:
                self._walk(_parent_parts(path), entry.target, [_LOOPS])
            except _LeadsOut:
                self._refuse_link(path, entry.target)

    def parents(self, path: str) -> list[str]:
        """The folders above `path` that are not in the tree yet, the highest first; the root is the empty one."""
        if not path:
            return []
        parts = path.split("/")
        above = ["", *("/".join(parts[:end]) for end in range(1, len(parts)))]
        return [one for one in above if one not in self.entries]

    def make(self, path: str, like: Entry) -> Entry:
        """A folder that the archive does not name, although something is in it."""
        self.entries[path] = Entry(path, _FOLDER, 0o755, like.uid, like.gid, like.mtime)
        return self.entries[path]

    def _see_parents(self, info: tarfile.TarInfo, path: str) -> None:
        """See that what is above it is a folder: of the lowest that is known, the ones above were seen before."""
        while path:
            path = path.rpartition("/")[0]
            if known := self.entries.get(path):
                if known.kind != _FOLDER:
                    what = "link" if known.kind == _LINK else "file"
                    self._refuse(info, f"is to be unpacked through the {what} {known.path or self._member!r}")
                return

    def _entry(self, info: tarfile.TarInfo, path: str) -> Entry:
        if not isfinite(info.mtime) or not -(1 << 40) < info.mtime < 1 << 40:
            self._refuse(info, f"has an impossible time ({info.mtime})")
        uid = self._terms.users.get(info.uname, info.uid)
        gid = self._terms.groups.get(info.gname, info.gid)
        if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
            self._refuse(info, f"has an impossible owner ({uid}:{gid})")
        entry = Entry(path, _FILE, info.mode & 0o777, uid, gid, int(info.mtime))
        if info.isreg():
            return replace(entry, size=info.size)
        if info.isdir():
            # The bits for set-group-ID and sticky mean something else on a folder, and give nobody anything.
            return replace(entry, kind=_FOLDER, mode=info.mode & 0o3777)
        if info.issym():
            self._check_link(path, info.linkname)
            return replace(entry, kind=_LINK, mode=0o777, target=info.linkname)
        if info.islnk():
            return self._hard_link(info, entry)
        what = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe (fifo)"}
        self._refuse(info, f"is {what.get(info.type, f'of an unknown kind ({info.type!r})')}")

    def _hard_link(self, info: tarfile.TarInfo, entry: Entry) -> Entry:
        try:
            first = self._names.within(normal(info.linkname), self._member)
        except ValueError:
            first = None
        known = self.entries.get(first) if first is not None else None
        if known is None or known.kind == _FOLDER or first == entry.path:
            self._refuse(info, f"is a hard link to {info.linkname!r}, which is no file of the tree before it")
        if known.kind == _LINK:
            self._check_link(entry.path, known.target)
            return replace(known, path=entry.path)
        return replace(known, path=entry.path, same_as=known.same_as or known.path)

    def _see_room(self, info: tarfile.TarInfo, entry: Entry) -> None:
        if entry.same_as is not None:
            return
        self._room -= -(-entry.size // _BLOCK) * _BLOCK or _BLOCK
        if self._room < 0:
            self._refuse(
                info,
                f"({entry.size / 1e6:,.1f} MB) does not fit: with what was unpacked before it, more than the "
                f"{self._terms.free / 1e6:,.1f} MB that are free",
                "make room there, or use another archive: this may be one that unpacks without end",
            )

    # --- links ---------------------------------------------------------------------------------------------------

    def _check_link(self, path: str, target: str) -> None:
        """Where it leads by its words; one that goes down and up again is looked at when all is known."""
        if self._terms.trusted:
            return
        try:
            at, words = self._start(_parent_parts(path), target)
            up = 0
            while up < len(words) and words[up] == "..":
                up += 1
            if up > len(at) or not target or "\0" in target:
                raise _LeadsOut
        except _LeadsOut:
            self._refuse_link(path, target)
        # What is below may be a link itself, and `..` after it then is not where the words say.
        self._crooked += [path] if ".." in words[up:] else []

    def _start(self, at: list[str], target: str) -> tuple[list[str], list[str]]:
        """From where, and by which words, a link leads on within the tree."""
        if target.startswith("/"):
            home = self._terms.home.rstrip("/")
            if not home or not f"{target}/".startswith(f"{home}/"):
                raise _LeadsOut
            at, target = [], target.removeprefix(home)
        return at, [word for word in target.split("/") if word not in ("", ".")]

    def _walk(self, at: list[str], target: str, budget: list[int]) -> list[str]:
        """Where a link leads, through all others. Raises _LeadsOut; one that leads in circles leads nowhere."""
        budget[0] -= 1
        if budget[0] < 0:
            return at
        at, words = self._start(at, target)
        at = list(at)
        for word in words:
            if word == "..":
                if not at:
                    raise _LeadsOut
                at.pop()
                continue
            known = self.entries.get("/".join([*at, word]))
            at = self._walk(at, known.target, budget) if known and known.kind == _LINK else [*at, word]
        return at

    # --- words ---------------------------------------------------------------------------------------------------

    def _refuse_link(self, path: str, target: str) -> NoReturn:
        at = f"{self._member}/{path}" if path else self._member
        raise CannotError(
            f"{self._archive}: its member {at!r} is a link to {target!r}, which leads out of {self._member!r}.",
            safe=_SAFE,
            hint=_OR_TRUST,
        )

    def _refuse(self, info: tarfile.TarInfo, wrong: str, hint: str = "") -> NoReturn:
        raise refused(self._archive, info, wrong, hint)


def refused(archive: str, info: tarfile.TarInfo, wrong: str, hint: str = "") -> CannotError:
    """The error that names a member of an archive, and what is wrong with it."""
    name = repr(info.name) if len(info.name) <= _SHOWN else f"{info.name[:_SHOWN]!r}..."
    return CannotError(
        f"{archive}: its member {name} {wrong}.",
        safe=_SAFE,
        hint=hint or "use another archive",
    )


class _LeadsOut(Exception):
    """A link leads out of the tree."""


def _parent_parts(path: str) -> list[str]:
    return path.split("/")[:-1]
