"""What a schedule does while somebody else works on its service: it waits, where SALVOR_WAIT says so."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from salvor import commands, patience
from salvor.errors import HeldError, UsageError
from salvor.journal import lock
from salvor.patience import patiently


def held_for(seconds: float, folder: Path) -> threading.Thread:
    """Somebody works on the service `shop` for so long."""
    begun = threading.Event()

    def work() -> None:
        with lock.hold("shop", folder, by="schedule nightly", incident="20261121T020000Z-shop-0000"):
            begun.set()
            time.sleep(seconds)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    return thread


def test_a_command_waits_for_whoever_works_on_its_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.1, 0.1))
    done = []

    @commands.command()
    def back_up(c: object) -> None:
        with lock.hold("shop", tmp_path, by="schedule four-hourly", incident="20261121T020001Z-shop-1111"):
            done.append(True)

    other = held_for(1.5, tmp_path)
    with pytest.raises(SystemExit) as ended:
        back_up.body(None)  # type: ignore[attr-defined]
    assert (ended.value.code, done) == (HeldError.exit_code, []), "whoever types it is told at once"
    capsys.readouterr()
    monkeypatch.setenv("SALVOR_WAIT", "1m")
    back_up.body(None)  # type: ignore[attr-defined]
    assert done
    assert capsys.readouterr().err.count("schedule nightly works on shop now") == 1
    other.join()


def test_it_waits_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> None:
        tried.append(True)
        raise HeldError("kim works on shop now.")

    monkeypatch.setattr(patience, "_PAUSES", (0.02, 0.02))
    monkeypatch.setenv("SALVOR_WAIT", "0.2s")
    tried: list[bool] = []
    with pytest.raises(HeldError):
        patiently(call, lambda text: None)
    assert 1 < len(tried) <= 11
    monkeypatch.setenv("SALVOR_WAIT", "soon")
    with pytest.raises(UsageError, match="SALVOR_WAIT: 'soon' is not a duration"):
        patiently(call, lambda text: None)
