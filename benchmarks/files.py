"""A tree restored by Salvor against the same work by hand: `python benchmarks/files.py --megabytes=2048 --rounds=3`.

Half of the bytes are in files of 16 KiB, half in files of 64 MiB; a fifth of each repeats, so it compresses as media
and text together do. All is in FOLDER (`--folder`, default: a new one below the current), on one disk: the tree, a
restic repository, an archive by tar. In each round, in another order, each way brings the tree back beside the live
one:

`salvor`: choose, stage, verify and promote, as in a recovery: every file read back, all flushed to disk, every entry
compared with the backup, swapped in.
`restic`: `restic restore`, and nothing else. `restic, proven`: `restic restore --verify`, then `sync -f`.
`tar`: `tar -x`, and nothing else. `tar, flushed`: then `sync -f`.

Seconds are medians, ratios are medians of the ratios of one round. Caches are warm for all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold import settle
from salvor.change import Level
from salvor.files.settings import FilesSettings
from salvor.system import Context
from salvor.systems.files import Files
from salvor.wish import Wish

SMALL, LARGE = 16 * 1024, 64 * 1024 * 1024
INCIDENT = "20261121T000000Z-shop-0000"


def fill(tree: Path, megabytes: int) -> None:
    """Make the tree."""
    rest = megabytes * 1024 * 1024
    chance = random.Random(7)  # noqa: S311  the same tree each time
    for number in range(max(1, rest // 2 // LARGE)):
        write(tree / "large" / f"{number}.bin", LARGE, chance)
    for number in range(rest // 2 // SMALL):
        write(tree / f"{number % 97:02d}" / f"{number % 31:02d}" / f"{number}.jpg", SMALL, chance)


def write(path: Path, size: int, chance: random.Random) -> None:
    """Make one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as opened:
        for _ in range(size // SMALL):
            opened.write(chance.randbytes(SMALL * 4 // 5) + b" as it was uploaded" * (SMALL // 5 // 19))


def opened(folder: Path) -> Files:
    """The tree as a system."""
    repository = {"name": "local", "location": str(folder / "repository"), "password": f"file:{folder / 'password'}"}
    settings = {"kind": "files", "path": str(folder / "srv" / "media"), "repositories": [repository]}
    return Files("media", FilesSettings.model_validate(settings), Context(INCIDENT, folder / "incident", dict))


def act(system: Files, verb: str, **arguments: Any) -> float:
    """Carry a verb out; the seconds that it took."""
    begun = time.monotonic()
    for _ in system.apply(system.change(verb, why="-", no_undo="-", **arguments)):
        pass
    return time.monotonic() - begun


def salvor(folder: Path) -> tuple[float, dict[str, float]]:
    """Stage, verify, promote; the seconds of all, and of each."""
    system, parts = opened(folder), {}
    begun = time.monotonic()
    (way,) = [one for one in system.ways_back(Wish(rpo=1e9)) if one.name == "snapshot"]
    parts["choose"] = time.monotonic() - begun
    parts["stage"] = act(system, "stage", **dict(way.arguments or {}))
    then = time.monotonic()
    findings = list(system.verify(way, Wish(rpo=1e9)))
    parts["verify"] = time.monotonic() - then
    assert not [one for one in findings if one.level is not Level.PASS], findings
    parts["promote"] = act(system, "promote", **dict(way.promote))
    seconds = time.monotonic() - begun
    assert way.promote_undo
    act(system, "demote", **dict(way.promote_undo.arguments))
    act(system, "drop", stage="side-tree")
    return seconds, parts


def by_hand(folder: Path, *commands: list[str]) -> float:
    """The seconds that commands take; what they made is removed afterwards."""
    beside = folder / "srv" / "by-hand"
    beside.mkdir()
    begun = time.monotonic()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    seconds = time.monotonic() - begun
    shutil.rmtree(beside)
    return seconds


def main() -> None:
    """Read the arguments, measure, clear away."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--megabytes", type=int, default=2048)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="files-", dir=Path.cwd()))
    try:
        compare(folder, given.megabytes, given.rounds)
    finally:
        if not given.folder:
            shutil.rmtree(folder)


def compare(folder: Path, megabytes: int, rounds: int) -> None:
    """Make what is not there yet, then measure."""
    os.environ |= {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": str(folder / "cache")}
    tree, beside = folder / "srv" / "media", str(folder / "srv" / "by-hand")
    if not (folder / "media.tar").exists():
        folder.mkdir(exist_ok=True)
        (folder / "password").write_text("benchmark")
        (folder / "password").chmod(0o600)
        fill(tree, megabytes)
        print(f"backup: {act(opened(folder), 'backup', kind='snapshot'):.1f} s")
        subprocess.run(["tar", "-cf", folder / "media.tar", "-C", tree, "."], check=True)
        os.sync()
    restore = ["restic", "--repo", str(folder / "repository"), "restore", "latest", "--target", beside]
    unpack, flush = ["tar", "-xf", str(folder / "media.tar"), "-C", beside], ["sync", "-f", beside]
    ways: dict[str, Callable[[], float]] = {
        "restic": lambda: by_hand(folder, restore),
        "restic, proven": lambda: by_hand(folder, [*restore, "--verify"], flush),
        "tar": lambda: by_hand(folder, unpack),
        "tar, flushed": lambda: by_hand(folder, unpack, flush),
    }
    parts: list[dict[str, float]] = []
    taken: dict[str, list[float]] = {name: [] for name in ("salvor", *ways)}
    for number in range(rounds):
        for name in random.sample(list(taken), len(taken)):
            settle()
            if name == "salvor":
                seconds, each = salvor(folder)
                parts.append(each)
            else:
                seconds = ways[name]()
            taken[name].append(seconds)
            print(f"  round {number + 1}: {name} {seconds:.1f} s", flush=True)
    print("salvor:", ", ".join(f"{name} {statistics.median(one[name] for one in parts):.2f} s" for name in parts[0]))
    for name, seconds_of in taken.items():
        ratios = [ours / theirs for ours, theirs in zip(taken["salvor"], seconds_of, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{name:16} {statistics.median(seconds_of):6.1f} s   salvor/this {statistics.median(ratios):.2f} ({spread})"
        )


if __name__ == "__main__":
    main()
