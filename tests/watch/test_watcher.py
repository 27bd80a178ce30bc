"""The watcher as it runs: as a process, with a machine that hangs, for cron, and ended by SIGTERM."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from salvor import inventory
from salvor.clone import root
from salvor.show import Plain
from salvor.watch import commands
from salvor.watch.watcher import Watcher

from tests.waiting import until
from tests.watch.place import Place

QUICK = """
systems:
  pages: {{kind: cache, path: {root}/pages}}
  api: {{kind: application, service: no-such-service}}
  people: {{kind: outbox, channels: {{team: {{url: "json://127.0.0.1:{port}/team", severities: [warning, info]}}}}}}
services:
  shop: {{rto: 5m, rpo: 1d, applications: [api], messages: people}}
watch:
  memory:
    service: shop
    metric: {{prometheus: "http://127.0.0.1:{port}", query: memory}}
    above: 85
    for: 1s
    immediately: [{{clear: pages, allow: true}}]
"""
ACTING = QUICK.replace("services:", "  here: {{kind: host}}\nservices:").replace(
    "{{clear: pages, allow: true}}",
    "{{run: [sh, -c, 'touch {root}/begun; sleep 15'], host: here, deadline: 1h, allow: true}}",
)
HANGING = (
    QUICK.replace(
        "services:", "  web: {{kind: host, address: 127.0.0.1, ssh: {{port: {most}, user: nobody}}}}\nservices:"
    )
    + """
  load:
    service: shop
    metric: {{host: web, figure: load}}
    above: 3
    for: 1s
    escalate: nobody-yet
escalation:
  nobody-yet: {{messages: people, people: [{{channel: team}}]}}
"""
)


def inv(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "invoke", "--search-root", str(root()), *words, "--platform=place"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root())


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0]


def test_a_process_watches_alone_until_it_is_told_to_end(place: Place) -> None:
    place.write(text=QUICK)
    place.say(99)
    process = inv("watch", "--every=1s")
    try:
        assert until(lambda: place.pages == 0)
        second = inv("watch", "--once")
        assert "place is watched already" in said(second)
        assert second.returncode == 7
        commands.show_all("place", Plain(seen := io.StringIO()))
        assert "memory" in seen.getvalue() and "not watched" not in seen.getvalue()
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        told = said(process)
        assert time.monotonic() - begun < 5
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert "memory: 99 (limit above 85): immediately" in told
    assert "nobody called until it runs again" in told
    shown = inv("watch.show", "--json")
    line = json.loads(said(shown).splitlines()[-1])
    assert (line["rule"], line["bad"], line["next"]["move"]) == ("memory", True, "wait")
    assert line["episode"] == place.journals()[0].folder.name


def test_a_second_signal_ends_the_watch_amid_an_action(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended with its action, after up to an hour, whoever was told to end it to take the service over."""
    monkeypatch.setenv("HOME", str(place.root))
    place.write(text=ACTING)
    place.say(99)
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup it would be ignored
    process = inv("watch", "--every=1s")
    signal.signal(signal.SIGHUP, ours)
    try:
        assert until((place.root / "begun").exists)
        process.send_signal(signal.SIGHUP)  # its terminal hangs up
        assert process.stdout
        assert any("A second signal ends it at once" in line for line in process.stdout)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        told = said(process)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM, told


def test_cron_looks_once_a_minute(place: Place) -> None:
    place.write(text=QUICK)
    place.say(99)
    assert said(inv("watch", "--once"))
    assert place.pages == 2
    time.sleep(1)
    assert "memory" in said(inv("watch", "--once"))
    assert place.pages == 0
    modes = {oct(path.stat().st_mode & 0o777) for path in (place.root / "incidents/.watch").rglob("*.json")}
    assert modes == {"0o600"}


def test_a_machine_that_hangs_holds_no_other_rule_up(place: Place) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        place.write(text=HANGING, most=silent.getsockname()[1])
        place.say(99)
        watcher = Watcher(inventory.load("place"), Plain(io.StringIO()))
        errors: list[BaseException] = []
        thread = threading.Thread(target=watcher.loop, args=(0.2, errors.append))
        begun = time.monotonic()
        thread.start()
        try:
            assert until(lambda: place.pages == 0)
            assert time.monotonic() - begun < 4  # the machine alone takes longer to be given up
        finally:
            watcher.stop()
            thread.join(30)
    assert not errors
    assert not thread.is_alive()


def test_the_interval_is_bounded(place: Place) -> None:
    from salvor.errors import UsageError
    from salvor.watch import commands

    place.write(text=QUICK)
    for every in ("0s", "2m", "soon"):
        with pytest.raises(UsageError, match="--every"):
            commands.watch("place", Plain(io.StringIO()), every=every)
