"""Takes one member out of an archive, here or on a host, while others take theirs out of the same reading."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from salvor.archive import reading
from salvor.archive.settings import ArchivesSettings
from salvor.archive.source import Archive
from salvor.archive.taking import Company, Extracted, Taking
from salvor.change import Progress
from salvor.shell import Shell


@contextmanager
def taking_out(
    archive: Archive,
    settings: ArchivesSettings | None,
    member: str,
    there: Shell,
    into: str,
    *,
    tree: str = "tree",
    home: str = "",
    trusted: bool = False,
    host: Shell | None = None,
    company: Company = Company(),  # noqa: B008  frozen
) -> Iterator[Taking]:
    """Unpack `member` as `INTO/TREE`, a folder or a file, by `tar -x` on `there`. `into` is an empty folder of ours;
    the archive lies on `host`, when that is another machine.

    Modes, times (seconds) and links are as in the archive; owners too, by name and else by number, where root unpacks.
    Files get no set-user-ID and set-group-ID bits. It cannot be gone on with: after an error, empty `into`. Nothing is
    flushed to disk yet. Raises CannotError; nothing outside of `into` is touched, and nothing there after the block.
    """
    taking = Taking(archive, member, there, into, tree=tree, home=home, trusted=trusted, company=company)
    try:
        reading.join(archive, settings, host or there, taking)
        yield taking
    finally:
        taking.leave()


def extract(
    archive: Archive, settings: ArchivesSettings | None, member: str, there: Shell, into: str, **terms: Any
) -> Generator[Progress, None, Extracted]:
    """Unpack a member as `taking_out` says, to the archive's end. Yields how many of its bytes were read."""
    with taking_out(archive, settings, member, there, into, **terms) as taking:
        return (yield from taking.whole())
