"""Drills that something befalls, by the commands as they are typed: python -m tests.drills [--kills=8] [--seed=1]

A backup is broken on purpose, and the next drill must find it. Drills are killed at any moment (SIGKILL: the operator's
process alone, or with all that it started), and after the next one nothing may be left. Each of the two is shown with a
cutover, where the sandbox is broken, and without one, where a backup is rehearsed beside what is live.

Says each case as it ends, and ends with 1 when one is not as it should be.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from salvor import clock, journal, sandbox
from salvor.change import Level
from salvor.drill import report as drill_report

from tests import conftest

INV = str(Path(sys.executable).with_name("inv"))
CUTOVER, REHEARSAL = ("drill", "--scenario=wrong-update"), ("drill", "--scenario=rehearsal")


def inv(*words: str) -> subprocess.Popen[str]:
    """One of our commands, in a group of processes of its own."""
    return subprocess.Popen(
        [INV, *words], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def to_its_end(*words: str) -> tuple[int, str]:
    """The exit code of a command, and what it said."""
    running = inv(*words)
    said, _ = running.communicate(timeout=600)
    return running.returncode, said


def processes(base: Path) -> Iterator[str]:
    """What runs of a sandbox in `base`, or was started for it."""
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        try:
            words = [(entry / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
            if any(str(base) in each for each in (*words, str((entry / "cwd").readlink()))):
                yield f"process {entry.name}: {words[0]}"
        except OSError:  # it has ended
            continue


def left(base: Path) -> list[str]:
    """What drills in `base` left behind: processes, folders, scratch, journals that were never closed."""
    found = [*processes(base), *(str(path) for path in (base / "tmp").iterdir())]
    found += [str(path) for path in (base / "sandbox", base / "data") if path.exists()]
    for folder in journal.incidents(base / "incidents"):
        if journal.Journal.read(folder).lines[-1]["kind"] != "closed":
            found.append(f"{folder.name} is not closed")
    return found


def newest() -> drill_report.Report:
    return drill_report.read(next(journal.incidents(Path(os.environ["SALVOR_INCIDENTS"]))))


def broken_backup() -> Iterator[str]:
    """What was not as it should be when one byte of the newest backup was another."""
    repository = sandbox.find().root / "repository/backup/orders"
    bundle = max(path for path in repository.glob("*F/bundle/*"))
    content = bundle.read_bytes()
    middle = len(content) // 2
    bundle.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    code, said = to_its_end(*REHEARSAL)
    report = newest()
    if code == 0 or report.verdict is not Level.FAIL or "checksum" not in report.mends[0].figure:
        yield f"the broken backup was not found: {code}, {report.headline}: {said}"
    if any(each.level is not Level.PASS for each in report.cleaning):
        yield "the drill of the broken backup left something"
    bundle.write_bytes(content)
    code, said = to_its_end(*REHEARSAL)
    if code or newest().verdict is Level.FAIL:
        yield f"the mended backup is not found good: {code}: {said}"


def kill(words: tuple[str, ...], after: float, *, everything: bool) -> bool:
    """Kill a drill after so many seconds, alone or with all of its group. False: it had ended."""
    running = inv(*words)
    assert running.stdout
    time.sleep(after)
    if running.poll() is None:
        (os.killpg if everything else os.kill)(running.pid, signal.SIGKILL)
    running.stdout.close()  # what it started may still have the other end
    return running.wait() == -signal.SIGKILL


def killed(base: Path, count: int, seed: int) -> Iterator[str]:
    """What was left, or not as it should be, after each drill that followed a killed one."""
    choose = random.Random(seed)
    usual: dict[tuple[str, ...], float] = {}
    for words in (REHEARSAL, CUTOVER):
        begun = time.monotonic()
        code, said = to_its_end(*words)
        usual[words] = time.monotonic() - begun
        if code:
            yield f"an undisturbed drill failed: {said}"
        sandbox.up(tell=lambda text: None)
    for number in range(count):
        words, everything = (REHEARSAL, CUTOVER)[number % 2], number % 4 > 1
        after = choose.uniform(0.5, usual[words])
        hit = kill(words, after, everything=everything)
        if words is REHEARSAL:  # of a whole sandbox that stands; a drill with a cutover makes its own
            sandbox.up(tell=lambda text: None)
        code, said = to_its_end(*words)
        if words is REHEARSAL:
            looks = newest().cleaning
            wrong = [f"{each.check}: {each.figure}" for each in looks if each.level is not Level.PASS]
            wrong += [] if looks else ["nobody looked whether something is left"]
            sandbox.down()
        else:
            wrong = []
        wrong += left(base)
        told = (
            f"{' '.join(words)}, {'all' if everything else 'alone'}, {'killed' if hit else 'over'} after {after:.1f} s"
        )
        print(f"{told}: the next one ended with {code}, {len(wrong)} things left", flush=True)
        if code or wrong:
            yield f"{told}: {code}: {'; '.join(wrong)}: {said if code else ''}"
        sandbox.up(tell=lambda text: None)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills")
    parser.add_argument("--kills", type=int, default=8, help="how many drills to kill (8)")
    parser.add_argument("--seed", type=int, default=1, help="what chooses the moments (1)")
    given = parser.parse_args(argv)
    begun = clock.monotonic()
    with conftest.place_for_a_sandbox() as base:
        (base / "tmp").mkdir()
        os.environ |= {"TMPDIR": str(base / "tmp")}
        sandbox.up(tell=lambda text: None)
        wrong = list(broken_backup())
        print(f"a broken backup: {wrong or 'found by the next drill'}", flush=True)
        wrong += killed(base, given.kills, given.seed)
    print(f"{given.kills} kills, {len(wrong)} wrong, in {clock.write_duration(clock.monotonic() - begun)}")
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
