"""How a command ends where its surroundings are not what they should be."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from salvor import inventory
from salvor.commands.ending import ends_with_exit_code

from tests.test_console import ROOT, SERVICE, inv_command, inv_environment
from tests.world import World

NOBODY = 65534


def ended(place: World, streams: str) -> tuple[int, str]:
    """How `inv assess` ends with these streams, and what it said on standard error."""
    line = ["sh", "-c", f"exec {shlex.join(inv_command('assess', *SERVICE))} {streams}"]
    done = subprocess.run(
        line, cwd=ROOT, env=inv_environment(place), stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_streams_that_are_closed_are_no_error(place: World) -> None:
    assert ended(place, "<&- >&-") == (0, "")
    assert ended(place, "<&- >&- 2>&-") == (0, "")


def test_a_full_disk_that_the_output_goes_to_is_named(place: World) -> None:
    code, said = ended(place, ">/dev/full")
    assert (code, "Standard output takes nothing: No space left on device." in said) == (3, True), said
    assert "HINT: the same command again goes on from here" in said


def test_a_full_disk_that_the_errors_go_to_changes_no_exit_code(place: World) -> None:
    line = ["sh", "-c", f"exec {shlex.join(inv_command('assess', '--service=nothing'))} 2>/dev/full"]
    assert subprocess.run(line, cwd=ROOT, env=inv_environment(place), timeout=60, check=False).returncode == 2


def test_one_more_ctrl_c_ends_without_a_traceback(place: World) -> None:
    """While the threads of what is under way are waited for, at the end of Python."""
    code = """if True:
        import time
        from concurrent.futures import ThreadPoolExecutor
        from salvor.commands.ending import ends_with_exit_code
        pool = ThreadPoolExecutor()
        pool.submit(time.sleep, 20)
        def stopped():
            raise KeyboardInterrupt
        ends_with_exit_code(stopped)()
    """
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert running.stderr
    said = running.stderr.readline() + running.stderr.readline() + running.stderr.readline()
    assert "Stopped by you." in said
    running.send_signal(signal.SIGINT)
    assert running.stderr.read() == ""
    assert running.wait(10) == -signal.SIGINT
    running.stderr.close()


@pytest.mark.parametrize(
    ("signals", "ignored", "code", "says"),
    [
        ([signal.SIGTERM], False, 130, "begun\ntaken away\n"),
        ([signal.SIGHUP, signal.SIGHUP], False, 130, "begun\ntaken away\n"),  # as a shell and the kernel send it
        ([signal.SIGTERM, signal.SIGTERM], False, -signal.SIGTERM, "begun\n"),
        ([signal.SIGHUP], True, 0, "begun\ntaken away\n"),  # by nohup
    ],
)
def test_who_is_ended_takes_away_what_was_begun(
    signals: list[signal.Signals], ignored: bool, code: int, says: str
) -> None:
    script = """if True:
        import time
        from salvor.commands.ending import ends_with_exit_code
        def work():
            try:
                print("begun", flush=True)
                time.sleep(1)
            finally:
                time.sleep(0.5)
                print("taken away")
        ends_with_exit_code(work)()
    """
    prefix = ["nohup"] if ignored else []
    running = subprocess.Popen([*prefix, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert running.stdout
    said = running.stdout.readline()
    for number in signals:
        running.send_signal(number)
        time.sleep(0.2)
    assert (said + running.stdout.read(), running.wait(10)) == (says, code)
    running.stdout.close()


def test_what_ctrl_c_leaves_may_have_a_hint_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt("Stopped by you.\nHINT: the journal first")

    with pytest.raises(SystemExit):
        ends_with_exit_code(stopped)()
    assert capsys.readouterr().err == "\nStopped by you.\nHINT: the journal first\n"


def test_a_folder_that_lets_us_not_in_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0)
    monkeypatch.setenv("SALVOR_INVENTORY", str(shut))
    ours = os.geteuid()
    if ours == 0:  # who may enter everywhere
        os.seteuid(NOBODY)
    try:
        with pytest.raises(SystemExit) as code:
            ends_with_exit_code(inventory.load)("ours")
    finally:
        os.seteuid(ours)
    said = capsys.readouterr().err
    assert code.value.code == 3, said
    assert f"{shut}/ours: Permission denied." in said
    assert f"HINT: see who may on the way there, and who you are: namei -l {shut}/ours; id" in said
