"""The way back `archive`: the tree out of an archive of the whole platform, unpacked beside the live one."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from salvor import clock
from salvor.archive import listing
from salvor.archive.extract import extract
from salvor.archive.source import refuse_unreadable
from salvor.archive.taking import Extracted
from salvor.archive.vetting import TRUST_ARCHIVE, Entry
from salvor.change import READ_FROM, Backup, Finding, Level, Progress, Undo, WayBack
from salvor.errors import CannotError, SalvorError
from salvor.files import backing_up, census, proof
from salvor.files.digests import digests
from salvor.files.look import Look
from salvor.files.snapshot import STAGE
from salvor.plain import amount
from salvor.wish import Wish

if TYPE_CHECKING:
    from salvor.systems.files import Files

NAME = "archive"
_SHOWN = 5
_READING, _SILENCE = 24 * 3600.0, 300.0


def backups(system: Files) -> list[Backup]:
    """The archives that the tree is in, newest first. Raises CannotError when they cannot be read."""
    settings = system.settings.archives
    return listing.backups(settings, system.shell, system=system.name, way=NAME) if settings else []


def way_back(system: Files, look: Look, wish: Wish) -> WayBack:
    """The archive that the wish means, or why there is none."""
    settings = system.settings.archives
    if settings is None:
        return WayBack(NAME, False, "the inventory names no archives, and which member of them this tree is")
    try:
        archive = listing.find(settings, system.shell, wish)
        refuse_unreadable(archive, settings, system.shell)
    except SalvorError as error:
        return WayBack(NAME, False, error.reason)
    if reason := system.unmovable(look):
        return WayBack(NAME, False, reason)
    where = f" on {system.shell.where}" if archive.there else ""
    taken = clock.write_time(archive.taken) if archive.taken else "an unknown moment"
    trust = dict(wish.overrides or {}).get(TRUST_ARCHIVE)
    return WayBack(
        NAME,
        True,
        f"{settings.member} from {archive.location}{where} of {taken}",
        stage=STAGE,
        address=system.settings.address or None,
        backup=archive.name,
        arguments={
            "stage": STAGE,
            "source": archive.location,
            "member": settings.member,
            **({"trusted_because": trust} if trust else {}),
        },
        promote={"identity": look.identity, "stage": STAGE},
        promote_undo=Undo("demote", {"identity": look.identity, "stage": STAGE}),
        loses=wish.loses(archive.taken),
    )


def build(
    system: Files, source: str, member: str, trusted_because: str = ""
) -> Generator[Progress | Finding, None, tuple[str, dict[str, Any]]]:
    """Unpack the tree and compare every entry with what was read. Returns where it is, and what the marker is to say.

    Raises CannotError; then nothing is left of it but the empty folder that it was built in.
    """
    archive = listing.locate(source, system.shell)
    system.place.begin()
    try:
        extracted = yield from extract(
            archive,
            system.settings.archives,
            member,
            system.shell,
            system.place.building,
            home=system.settings.path,
            trusted=bool(trusted_because),
            company=system.company(source),
        )
        yield Finding(system.name, READ_FROM, Level.PASS, extracted.identity, detail=archive.location)
        built = f"{system.place.building}/tree"
        yield Progress(0, len(extracted.entries), "entries", "comparing every entry")
        if wrong := compare(extracted, system, built):
            raise CannotError(
                f"What was unpacked of {archive.name} is not what was read from it: {'; '.join(wrong[:_SHOWN])}"
                f"{f' and {len(wrong) - _SHOWN} more' if len(wrong) > _SHOWN else ''}.",
                safe="what is live is as it was",
                hint=f"look at that disk: on {system.shell.where}, dmesg; then run the same command again",
            )
    except BaseException:
        with suppress(SalvorError):  # an archive is read from its start: what is half unpacked is of no use
            system.place.drop()
        raise
    noted = {
        "archive": archive.location,
        "taken": clock.write_time(archive.taken) if archive.taken else None,
        "how": extracted.how,
        "read_back": len(extracted.entries),
        "size": extracted.size,
        "owners": extracted.owners,
    }
    return built, noted


def compare(extracted: Extracted, system: Files, built: str) -> list[str]:
    """What is another thing on disk than it was in the archive, in words: content, kind, size, mode, time, owner."""
    left = dict(extracted.entries)
    wrong = []
    for found in census.take(system.shell, built):
        path = os.fsdecode(found.path)
        entry = left.pop(path, None)
        if entry is None:
            wrong.append(f"{path!r} was not in it")
        elif differs := _differs(entry, found, owners=extracted.owners):
            wrong.append(f"{path or '.'!r} has another {differs}")
    wrong += [f"{path!r} is missing" for path in left]
    if wrong:
        return wrong
    files = [entry for entry in extracted.entries.values() if entry.kind == "f"]
    top = os.fsencode(PurePosixPath(built).name)
    names = [b"/".join(filter(None, [top, os.fsencode(entry.path)])) for entry in files]
    sizes = (entry.size for entry in files)
    sums = digests(system.shell, str(PurePosixPath(built).parent), zip(names, sizes, strict=True))
    return [
        f"{entry.path or '.'!r} has another content"
        for name, entry in zip(names, files, strict=True)
        if entry.sha256.hex() != sums[name]
    ]


def _differs(entry: Entry, found: census.Entry, *, owners: bool) -> str:
    if entry.kind != found.kind:
        return "kind"
    if owners and (entry.uid, entry.gid) != (found.uid, found.gid):
        return "owner"
    if entry.kind == "l":
        return "" if os.fsencode(entry.target) == found.target else "target"
    if entry.kind == "f" and entry.size != found.size:
        return "size"
    if entry.mode != found.mode:
        return "mode"
    return "" if entry.mtime == found.modified // 10**9 else "time"


def verify(system: Files, look: Look, wish: Wish) -> Iterator[Finding]:
    """Prove the staged tree: it was compared when it was unpacked; how old it is."""
    mine = system.place.mine(look)
    if mine is None or not mine.whole:
        yield Finding(system.name, "staged", Level.FAIL, detail="there is no whole stage of this incident")
        return
    marker = mine.marker
    read_back = int(marker.get("read_back", -1))
    yield Finding(
        system.name,
        "content",
        Level.PASS if read_back >= 0 else Level.FAIL,
        figure=amount(read_back, "entry", "entries"),
        detail="each was read back and compared with the archive: checksum, mode, time",
        evidence=mine.tree,
    )
    if not marker.get("owners"):
        why = "it was not unpacked by root (run_as), so all belongs to who unpacked it"
        yield Finding(system.name, "owners", Level.WARN, "not restored", detail=why, evidence=mine.tree)
    taken = marker.get("taken")
    yield proof.freshness(system.name, clock.read_time(taken) if taken else None, mine, wish)


_PACK = 'tar -c -f - --format=gnu -C "$(dirname -- "$1")" -- "$(basename -- "$1")" || [ $? = 1 ]'  # 1: a file changed


def pack(system: Files) -> Iterator[bytes]:
    """What is live, as a tar stream. Raises CannotError when it is not there, broken, or was emptied."""
    look = system.place.look()
    backing_up.refuse_unmounted_or_broken(system, look, "no archive was written")
    if census.count(system.shell, look.path).size == 0:
        backing_up.refuse_emptied(system, look, "no archive was written")
    yield from system.shell.pieces(["sh", "-c", _PACK, "sh", look.path], deadline=_READING, idle=_SILENCE)
