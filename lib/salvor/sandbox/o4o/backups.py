"""The stand-in's backups of files: restic into two repositories, and the nightly archive of everything."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from salvor import clock, shell
from salvor.sandbox import folders
from salvor.sandbox.o4o import database
from salvor.sandbox.o4o.layout import Layout

_MADE = "backups-are-made"
_NAME = "o4o_backup_"
_DEADLINE = 120.0


def are_made(sandbox: Layout) -> bool:
    """Whether the first ones were finished."""
    return (sandbox.root / _MADE).exists()


def take(sandbox: Layout) -> None:
    """A snapshot in each repository, which is made when it is not there."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: _snapshot(sandbox, path), sandbox.repositories.values()))


def _snapshot(sandbox: Layout, repository: Path) -> None:
    restic = ["restic", "--repo", str(repository), "--password-file", str(sandbox.root / "secrets" / "restic.password")]
    if not (repository / "config").exists():
        repository.mkdir(mode=0o700, parents=True, exist_ok=True)
        _run(sandbox, [*restic, "--no-cache", "init"])
    trees = [sandbox.settings, sandbox.media, sandbox.build, sandbox.logs]
    _run(sandbox, [*restic, "--no-cache", "backup", *map(str, trees)])


def archive(sandbox: Layout) -> Path:
    """The nightly archive of everything, made from the database and the files as they are; returns its path."""
    name = f"{_NAME}{clock.now():%Y%m%d_%H%M%S}"
    folder = sandbox.archives
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.glob(f".{_NAME}*"):  # by a killed call
        shutil.rmtree(left)
    work = folder / f".{name}"
    inside = work / name
    inside.mkdir(mode=0o700, parents=True)
    server = database.server(sandbox)
    dump = [server.program("pg_dump"), "--no-password", "--compress=1", f"--file={inside / 'database.sql.gz'}"]
    dump += [f"--dbname=host={server.address} port={server.port} user=salvor dbname={database.NAME}"]
    password = sandbox.secret("operator.password")
    shell.local().run(dump, deadline=_DEADLINE, environment={"PGPASSWORD": password})
    members = [str(path.name) for path in (sandbox.settings, sandbox.media, sandbox.build, sandbox.logs)]
    tar = ["tar", "--create", "--use-compress-program=gzip -1", "--file", str(work / "new"), "-C", str(work)]
    move = f"s,^srv,{name},S"
    rest = [f"{name}/database.sql.gz", "-C", str(sandbox.root), "--transform", move, *(f"srv/{one}" for one in members)]
    _run(sandbox, [*tar, *rest])
    whole = folder / f"{name}.tar.gz"
    (work / "new").chmod(0o600)
    (work / "new").rename(whole)
    shutil.rmtree(work)
    return whole


def note_made(sandbox: Layout) -> None:
    """From now on they are."""
    folders.write(sandbox.root / _MADE, clock.write_time(clock.now()) + "\n")


def _run(sandbox: Layout, argv: list[str]) -> None:
    """Run it in a folder of the stand-in, by which `down` finds it."""
    inside = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(sandbox.root / "backup"), *argv]
    shell.local().run(inside, deadline=_DEADLINE)
