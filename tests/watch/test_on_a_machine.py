"""On a whole machine, with its own systemd: its memory as a rule sees it, and every action that is done there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from salvor.change import Reachable
from salvor.errors import CannotError, CommandError, NotConvergedError, OutcomeUnknownError
from salvor.host import instances, once, releases, services
from salvor.journal import Journal
from salvor.session import aftermath
from salvor.shell import Shell
from salvor.show import Plain
from salvor.ssh.host import Host
from salvor.ssh.settings import SshSettings
from salvor.system import Context
from salvor.systems.application import Application, ApplicationSettings

from tests import machine
from tests.machine import Machine
from tests.watch.place import Place

pytestmark = pytest.mark.timeout(120)

WORKER = "[Service]\nExecStart=/bin/sleep 1000000\n"
SCRIPT = "#!/bin/sh\necho ran >> /root/ran\n"


@pytest.fixture(scope="module")
def made() -> Iterator[Machine]:
    with machine.running(systemd=True) as made:
        (made.root / "etc/systemd/system/worker@.service").write_text(WORKER)
        for name in ("2026-10", "2026-9", "2026-11"):
            (made.root / "srv/shop/releases" / name).mkdir(parents=True)
        (made.root / "srv/shop/current").symlink_to("releases/2026-11")
        script = made.root / "srv/script"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        yield made


@pytest.fixture
def there(made: Machine) -> Shell:
    shell = Host(made.address, made.settings).open()
    shell.run(["systemctl", "daemon-reload"])
    return shell


def memory(shell: Shell, used: float) -> None:
    """Let the machine say that so many per cent of its memory are taken: it does not know better."""
    total = 8_000_000
    lines = f"MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {round(total * (100 - used) / 100)} kB\n"
    shell.write("/root/meminfo", lines)
    shell.run(["sh", "-c", "umount /proc/meminfo 2>/dev/null; mount --bind /root/meminfo /proc/meminfo"])


def write(place: Place, made: Machine, immediately: list[dict[str, Any]], then: list[dict[str, Any]]) -> None:
    said = made.settings.model_dump(include={"user", "keys", "host_keys", "agent"})
    way = {
        "address": made.address,
        "ssh": {key: list(one) if isinstance(one, tuple) else one for key, one in said.items()},
    }
    platform = {
        "systems": {
            "web": {"kind": "host", **way},
            "api": {
                "kind": "application",
                **way,
                "service": "shop",
                "template": "worker@",
                "releases": "/srv/shop/releases",
            },
        },
        "services": {"shop": {"rto": "5m", "rpo": "1d", "applications": ["api"]}},
        "watch": {
            "memory": {
                "service": "shop",
                "metric": {"host": "web", "figure": "memory"},
                "above": 85,
                "for": "5m",
                "immediately": immediately,
                "then": then,
            }
        },
    }
    (place.root / "inventory/place.yaml").write_text(yaml.safe_dump(platform))


def test_memory_over_its_limit_restarts_runs_scales_and_rolls_back(place: Place, made: Machine, there: Shell) -> None:
    script = {"run": ["/srv/script"], "host": "web", "allow": True}
    write(place, made, [script, {"restart": "shop", "host": "web"}], [{"scale": "api", "to": 3}, {"roll_back": "api"}])
    memory(there, 85)
    watcher, said = place.watcher()
    for seconds in (0, 299, 301):
        place.look(watcher, seconds)
    assert place.journals() == []  # it is at its limit, not above
    memory(there, 90)
    place.look(watcher, 310)
    first = services.see(there, "shop").run
    place.look(watcher, 611)
    second = services.see(there, "shop").run
    assert second not in ("", first), said.getvalue()
    assert there.read("/root/ran") == "ran\n"
    place.look(watcher, 740)
    assert instances.count(there, "worker@") == 3, said.getvalue()
    assert releases.look(there, "/srv/shop/releases").current == "2026-10"
    assert services.see(there, "shop").run not in ("", first, second)
    memory(there, 20)
    place.look(watcher, 750)
    assert "better: 20.0 %" in said.getvalue()
    (journal,) = place.journals()
    told = io.StringIO()
    aftermath.undo(journal.folder.name, Plain(told), yes=True)
    assert "what it cleared stay" in told.getvalue() and "moment=undone" not in told.getvalue()
    assert instances.count(there, "worker@") == 0
    assert releases.look(there, "/srv/shop/releases").current == "2026-11"
    assert "undone" in {line["kind"] for line in Journal.read(journal.folder).lines}


def test_a_command_runs_once_for_its_token(made: Machine, there: Shell) -> None:
    count = ["sh", "-c", "echo once >> /root/once; exit $0", "0"]
    for _ in range(2):
        once.run(there, count, "a-1", deadline=10)
    assert there.read("/root/once") == "once\n"
    for _ in range(2):
        with pytest.raises(CommandError, match="exit code 3"):
            once.run(there, [*count[:-1], "3"], "a-2", deadline=10)
    assert there.read("/root/once") == "once\nonce\n"
    with pytest.raises(CommandError, match="exit code 75"):  # it says so itself
        once.run(there, ["sh", "-c", "exit 75"], "a-4", deadline=10)
    for occasion in ("", "../once", "a b"):
        with pytest.raises(CannotError, match="cannot name a run"):
            once.run(there, ["true"], occasion, deadline=10)
    for said in (r"did not end within", "nobody saw its end"):
        with pytest.raises(OutcomeUnknownError, match=said):
            once.run(there, ["sleep", "100"], "a-3", deadline=1.0)


def test_a_program_is_restarted_once_and_one_of_which_nobody_can_tell_is_not_down(
    made: Machine, there: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_STAYS", "_SETTLES"):
        monkeypatch.setattr(services, name, 0.1)

    def opened(**more: object) -> Application:
        way = {"address": made.address, "ssh": made.settings}
        said = {"kind": "application", **way, "service": "shop", **more}
        return Application("api", ApplicationSettings.model_validate(said), Context("i", tmp_path, dict))

    api = opened()
    api.start()
    first = api.look().run
    api.restart(first)
    assert api.observe().reachable is Reachable.UP
    second = api.look().run
    assert second not in ("", first)
    api.restart(first)
    ill = opened(healthy={"name": "it is well", "tcp": "127.0.0.1:1"}, starts_within=0.3)
    with pytest.raises(OutcomeUnknownError, match="is not healthy after"):
        ill.start()
    ill.start(await_health=False)
    with pytest.raises(NotConvergedError, match="is not healthy after"):
        ill.restart(first)
    assert api.look().run == second, "it was restarted before"
    with pytest.raises(CannotError, match="has no service 'no-such'"):
        opened(service="no-such", releases="/srv/shop/releases").roll_back("2026-9", "")
    assert releases.look(there, "/srv/shop/releases").current == "2026-11"
    there.write("/usr/local/bin/supervisorctl", "#!/bin/sh\necho unix:///run/socket no such file\n", mode=0o755)
    assert opened(service="worker").observe().reachable is Reachable.UNKNOWN
    there.run(["rm", "/usr/local/bin/supervisorctl"])
    assert opened(service="worker").observe().reachable is Reachable.DOWN
    nowhere = SshSettings(port=1, user="nobody", agent=False)
    assert opened(address="127.0.0.1", ssh=nowhere).observe().reachable is Reachable.UNKNOWN
    for wrong in ({"template": "shop"}, {"template": "a b@"}, {"releases": "srv/x"}, {"releases": "/srv/../etc"}):
        with pytest.raises(ValidationError):
            opened(**wrong)


def test_instances_of_a_template_go_up_and_down(made: Machine, there: Shell) -> None:
    for wanted in (2, 2, 1, 3, 1):
        instances.scale(there, "worker@", wanted, deadline=20)
        assert instances.count(there, "worker@") == wanted
        units = there.run(["systemctl", "list-units", "--plain", "--no-legend", "worker@*"]).stdout
        assert [line.split()[0] for line in units.splitlines()] == [f"worker@{n}.service" for n in range(1, wanted + 1)]
    there.run(["systemctl", "stop", "worker@1"])


def test_a_release_is_swapped_at_once_and_only_to_one_that_is_there(
    made: Machine, there: Shell, tmp_path: Path
) -> None:
    folder = "/srv/shop/releases"
    found = releases.look(there, folder)
    assert (found.names, found.current, found.before) == (("2026-9", "2026-10", "2026-11"), "2026-11", "2026-10")
    releases.turn_to(there, folder, "2026-9")
    assert (made.root / "srv/shop/current").readlink() == Path("releases/2026-9")
    assert releases.look(there, folder).before is None
    with pytest.raises(CannotError, match=r"no release '2026-1' in /srv/shop/releases(.|\n)*HINT: there: ls -l"):
        releases.turn_to(there, folder, "2026-1")
    for name in ("../..", "-n", ""):
        with pytest.raises(CannotError, match="is no release's name"):
            releases.turn_to(there, folder, name)
    assert releases.look(there, folder).current == "2026-9"
    releases.turn_to(there, folder, "2026-11")
    assert not (made.root / "srv/shop/current.salvor-new").exists()
    with pytest.raises(CannotError, match="no releases"):
        releases.look(there, "/srv")
    there.run(["sh", "-c", "mkdir -p /srv/other/2026-11 && ln -sfn ../other/2026-11 /srv/shop/current"])
    elsewhere = pytest.raises(CannotError, match=r"no releases (.|\n)*current leads to \.\./other/2026-11")
    with elsewhere:
        releases.look(there, folder)
    with elsewhere:
        releases.turn_to(there, folder, "2026-11")
    there.run(["ln", "-sfn", "releases/2026-11", "/srv/shop/current"])
