"""Schedules on whole machines: by systemd's timers on one, by a crontab on an old one without systemd."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from salvor import clone, shell
from salvor.errors import CannotError
from salvor.schedule import stamp
from salvor.schedule.crontab import Crontab
from salvor.schedule.entry import Caller
from salvor.schedule.systemd import Systemd
from salvor.shell import Shell

from tests import machine
from tests.machine import Machine
from tests.past import NOW
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)
ROOT = str(clone.root())
INVENTORY = """
systems:
  shop-db:
    kind: postgres
    database: shop
    members: [{name: a, address: 127.0.0.1, data: /srv/data}]
    side_port: 5999
    programs: /usr/lib/postgresql/15/bin
    operator: {user: salvor, password: "env:SHOP_PASSWORD"}
services:
  shop: {rto: 1h, rpo: 1d, systems: [shop-db]}
schedules:
  look: {run: [schedule.show, "--json"], at: "AT"}
  nightly: {run: [backup, --service=shop, "--kind=100% $HOME \\"a b\\""], at: "Sun 02:00"}
"""
A_DAEMON = "cp /bin/sleep /tmp/cron; setsid /tmp/cron 100000 >/dev/null 2>&1 & echo $! > /tmp/cron.pid"
"""Runs, and begins nothing while we look."""
FOREIGN = b"MAILTO=ops@example.com\n# caf\xe9, in the letters of 1998\n5 4 * * *\troot-backup 2>&1 | logger  \n\n"


class On:
    """A machine, and inv on it."""

    def __init__(self, made: Machine) -> None:
        self.machine = made
        self.shell: Shell = shell.connect(made.address, settings=made.settings)
        self.describe("03:00 UTC")

    def describe(self, at: str, text: str = INVENTORY) -> None:
        folder = self.machine.root / "srv" / "inventory"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "shop.yaml").write_text(text.replace("AT", at))

    def inv(self, *words: str, good: bool = True, platform: str = "shop") -> str:
        environment = {"SALVOR_INVENTORY": "/srv/inventory", "SALVOR_INCIDENTS": "/srv/incidents"}
        argv = [sys.executable, "-m", "invoke", *words, f"--platform={platform}"]
        done = self.shell.run(argv, environment=environment, folder=ROOT, deadline=60, check=False)
        assert (done.exit_code == 0) is good, done.stdout + done.stderr
        return done.stdout + done.stderr

    def is_renamed(self) -> None:
        """Its inventory has another name since its schedules were installed: they are said, and can be taken away."""
        folder = self.machine.root / "srv" / "inventory"
        (folder / "shop.yaml").rename(folder / "store.yaml")
        said = self.inv("schedule.show", platform="store")
        assert "those of shop: they run here, and /srv/inventory has no such platform; inv schedule.remove" in said
        assert "NOT IN THE INVENTORY" in self.inv("schedule.show")
        self.inv("schedule.remove", "--yes")
        assert "shop" not in self.inv("schedule.show", platform="store").replace("--service=shop", "")
        assert "there is no platform 'shop'" in self.inv("schedule.remove", "--yes", good=False)
        (folder / "store.yaml").unlink()

    def shown(self) -> dict[str, dict[str, str]]:
        return {one["name"]: one for one in map(json.loads, self.inv("schedule.show", "--json").splitlines())}

    def do(self, script: str) -> str:
        return self.shell.run(["sh", "-c", script], deadline=30).stdout


@pytest.fixture(scope="module")
def booted() -> Iterator[On]:
    with machine.running(systemd=True) as made:
        yield On(made)


@pytest.fixture(scope="module")
def old() -> Iterator[On]:
    with machine.running(systemd=False) as made:
        on = On(made)
        on.do(A_DAEMON)
        yield on


@pytest.fixture
def on_systemd(booted: On) -> Iterator[On]:
    booted.describe("03:00 UTC")
    yield booted
    if units(booted):
        booted.inv("schedule.remove", "--yes")


@pytest.fixture
def on_cron(old: On) -> Iterator[On]:
    old.describe("03:00 UTC")
    yield old
    if crontab(old):
        old.do("crontab -r")


def units(on: On) -> dict[str, str]:
    folder = on.machine.root / "etc" / "systemd" / "system"
    return {path.name: path.read_text() for path in folder.glob("salvor-*")}


# --------------------------------------------------------------------------------------------------- systemd


def test_timers_are_installed_once_and_taken_away(on_systemd: On) -> None:
    assert "NOT INSTALLED" in on_systemd.inv("schedule.show")
    assert "schedules: install look" in on_systemd.inv("schedule.install", "--plan").replace("name=", "")
    assert not units(on_systemd), "a plan writes nothing"
    on_systemd.inv("schedule.install", "--yes")
    first = units(on_systemd)
    assert sorted(first) == [
        f"salvor-shop.{name}.{kind}" for name in ("look", "nightly") for kind in ("service", "timer")
    ]
    assert "Persistent=true" in first["salvor-shop.look.timer"]
    folder = on_systemd.machine.root / "etc" / "systemd" / "system"
    assert {(folder / name).stat().st_mode & 0o777 for name in first} == {0o644}, "systemd warns of a file of 600"
    said = on_systemd.do("cd /etc/systemd/system && systemd-analyze verify salvor-* 2>&1")
    assert "salvor" not in said, said
    assert "Nothing to do" in on_systemd.inv("schedule.install", "--yes")
    assert units(on_systemd) == first
    assert "Environment=SALVOR_WAIT=" in first["salvor-shop.nightly.service"], "several may be due at once"
    listed = on_systemd.do("systemctl list-timers --all --no-legend 'salvor-*'")
    assert "03:00:00" in listed and "salvor-shop.nightly.timer" in listed
    said = on_systemd.inv("schedule.show")
    assert "NOT" not in said and "never" not in said, "systemd forgets at each boot when a service ran"
    said = on_systemd.inv("schedule.remove", "--yes")
    assert "why    it was asked for" in said and "Let nothing of this platform run by itself any more" in said
    assert not units(on_systemd)
    assert not on_systemd.do("systemctl list-timers --all --no-legend 'salvor-*'")


def test_what_was_missed_is_made_up_for_and_every_word_arrives_as_it_was_written(on_systemd: On) -> None:
    on_systemd.inv("schedule.install", "--yes")
    on_systemd.do("systemctl start salvor-shop.nightly.service || true")
    said = on_systemd.do("journalctl --no-pager -u salvor-shop.nightly.service -o cat")
    assert "there is no backup of kind '100% $HOME \"a b\"'" in said, said
    assert on_systemd.shown()["nightly"]["result"] == "exit code 2", "as its journal and cron say it"
    stamp = "/var/lib/systemd/timers/stamp-salvor-shop.look.timer"
    on_systemd.do(
        f"systemctl stop salvor-shop.look.timer && touch -d '2 days ago' {stamp} && "
        "systemctl start salvor-shop.look.timer"
    )  # as at boot
    assert until(lambda: on_systemd.shown()["look"]["result"] == "success"), on_systemd.inv("schedule.show")
    on_systemd.inv("schedule.remove", "--yes")
    assert not on_systemd.do("systemctl list-units --all --no-legend 'salvor-*'"), "nor as one that failed"
    assert not on_systemd.do(f"ls {stamp} 2>/dev/null || true"), "a later one of that name has missed nothing"


def test_what_moved_was_changed_by_hand_or_is_not_named_any_more_is_mended(on_systemd: On) -> None:
    on_systemd.inv("schedule.install", "--yes")
    on_systemd.describe("04:30 UTC")
    assert on_systemd.shown()["look"]["state"] == "NOT AS INSTALLED"
    plan = on_systemd.inv("schedule.install", "--plan")
    assert "it is: 03:00 UTC schedule.show --json" in plan and "at=03:00 UTC" in plan, "the undo is what it was"
    assert "nightly" not in plan, "the other one is as it is to be"
    on_systemd.inv("schedule.install", "--yes")
    assert "04:30:00" in on_systemd.do("systemctl list-timers --all --no-legend salvor-shop.look.timer")
    on_systemd.do("systemctl disable --now salvor-shop.look.timer")
    assert on_systemd.shown()["look"]["state"] == "NOT AS INSTALLED"
    on_systemd.describe("05:00", INVENTORY.replace("  nightly:", "  weekly:"))
    on_systemd.inv("schedule.install", "--yes")
    assert {name: one["state"] for name, one in on_systemd.shown().items()} == {
        "look": "installed",
        "weekly": "installed",
    }
    on_systemd.is_renamed()
    assert not units(on_systemd)


def test_timers_of_a_user_need_that_users_systemd_which_may_end_with_the_login(on_systemd: On) -> None:
    """su, sudo and sshd without PAM do not say where that is."""
    on_systemd.do("id kim 2>/dev/null || { useradd -m kim && usermod -p '*' kim; }")
    settings = on_systemd.machine.settings.model_copy(update={"user": "kim"})
    caller = Caller(platform="shop", python="/bin/true", folder="/", stamps="/tmp/stamps")
    by_kim = shell.connect(on_systemd.machine.address, settings=settings)
    with pytest.raises(CannotError, match="No systemd of the user kim runs") as refused:
        Systemd(by_kim, caller)
    assert refused.value.hint == "as root: loginctl enable-linger kim; then the same command again"
    on_systemd.do("loginctl enable-linger kim && until systemctl -q is-active user@$(id -u kim); do sleep 0.1; done")
    there = Systemd(by_kim, caller)
    there.put("look", "03:00", ["status"])
    assert there.installed()["look"].says("03:00", ["status"]) and there.warning() == ""
    there.remove("look")
    assert there.installed() == {}
    on_systemd.do("systemctl start user@$(id -u kim) && loginctl disable-linger kim")
    assert "while kim is logged in" in there.warning()


def test_what_is_disabled_or_was_not_loaded_is_not_as_installed(on_systemd: On) -> None:
    there = Systemd(on_systemd.shell, Caller(platform="shop", python="/bin/true", folder="/", stamps="/tmp/stamps"))
    timer = "salvor-shop.look.timer"
    for trouble in (f"systemctl disable {timer}", f"systemctl stop {timer}", f"touch /etc/systemd/system/{timer}"):
        there.put("look", "03:00", ["status"])
        assert there.installed()["look"].says("03:00", ["status"])
        on_systemd.do(trouble)
        assert not there.installed()["look"].says("03:00", ["status"]), trouble
    there.remove("look")


def test_the_folder_and_a_run_that_has_not_ended_are_as_they_are(on_systemd: On) -> None:
    on_systemd.do("mkdir -p '/srv/100%n i'; ln -sf /bin/sleep '/srv/100%n i/wait'")
    caller = Caller(platform="shop", python="/srv/100%n i/wait", folder="/srv/100%n i", stamps="/tmp/stamps")
    there = Systemd(on_systemd.shell, caller)
    there.put("look", "03:00", ["100"])
    on_systemd.do(
        "cd /etc/systemd/system && sed -i 's/ -m invoke//' salvor-shop.look.service && systemctl daemon-reload && "
        "systemctl start --no-block salvor-shop.look.service"
    )
    assert until(lambda: there.installed()["look"].result == "runs now")
    assert there.installed()["look"].last is not None
    environment = on_systemd.do("cat /proc/$(systemctl show -p MainPID --value salvor-shop.look.service)/environ")
    assert "HOME=/root" in environment.split("\0"), "restic's cache, and programs of cmd:, look there"
    assert "/srv/100%n i" in on_systemd.do("systemctl show -p WorkingDirectory --value salvor-shop.look.service")
    on_systemd.do("systemctl stop salvor-shop.look.service")
    there.remove("look")


# ------------------------------------------------------------------------------------------------------ cron


def crontab(on: On) -> bytes:
    return b"".join(on.shell.pieces(["sh", "-c", "crontab -l 2>/dev/null || true"], deadline=20))


def test_a_block_in_the_crontab_and_every_other_line_as_it_is(on_cron: On) -> None:
    on_cron.shell.run(["crontab", "-"], input=FOREIGN)
    on_cron.inv("schedule.install", "--yes")
    first = crontab(on_cron)
    assert first.startswith(FOREIGN) and first.count(b"schedule.run") == 2
    assert "Nothing to do" in on_cron.inv("schedule.install", "--yes")
    assert crontab(on_cron) == first
    behind = first + b"# behind \xff\n"
    on_cron.shell.run(["crontab", "-"], input=behind)
    on_cron.describe("04:30")
    on_cron.inv("schedule.install", "--yes")
    assert b'"04:30"' in crontab(on_cron) and crontab(on_cron).endswith(b"# behind \xff\n")
    on_cron.inv("schedule.remove", "--yes")
    assert crontab(on_cron) == FOREIGN + b"# behind \xff\n"
    on_cron.do("crontab -r")
    on_cron.inv("schedule.install", "--yes")
    on_cron.inv("schedule.remove", "--yes")
    assert "no crontab" in on_cron.do("crontab -l 2>&1 || true")


def test_a_block_that_somebody_cut_is_left_alone(on_cron: On) -> None:
    on_cron.inv("schedule.install", "--yes")
    whole = crontab(on_cron)
    cut = b"".join(one for one in whole.splitlines(keepends=True) if not one.startswith(b"# END"))
    on_cron.shell.run(["crontab", "-"], input=cut)
    said = on_cron.inv("schedule.install", "--yes", good=False)
    assert "begin of our block and not its end" in said and "HINT:" in said
    assert crontab(on_cron) == cut
    on_cron.shell.run(["crontab", "-"], input=whole)


def test_a_crontab_that_cannot_be_read_is_not_an_empty_one(on_cron: On) -> None:
    on_cron.shell.run(["crontab", "-"], input=FOREIGN)
    refusing = on_cron.machine.root / "usr/local/bin/crontab"
    refusing.write_text(
        "#!/bin/sh\n[ $1 != -l ] || { echo 'Input/output error' >&2; exit 1; }\nexec /usr/bin/crontab $@\n"
    )
    refusing.chmod(0o755)
    assert "Input/output error" in on_cron.inv("schedule.install", "--yes", good=False)
    refusing.unlink()
    assert crontab(on_cron) == FOREIGN
    spool = on_cron.machine.root / "var/spool/cron/crontabs/root"
    spool.write_bytes(b"5 4 * * * root-backup")  # an editor that writes no newline, and no crontab between
    on_cron.inv("schedule.install", "--yes")
    assert crontab(on_cron).startswith(b"5 4 * * * root-backup\n# BEGIN")
    on_cron.do("crontab -r")
    table = Crontab(on_cron.shell, Caller(platform="shop", python="", folder="/", stamps="/tmp/stamps"))
    table.remove("look")
    table.put("look", "03:00", ["status"])
    (on_cron.machine.root / "tmp/stamps/shop.look.json").write_text(stamp.Stamp(NOW, NOW, 0).text())
    table.put("look", "04:30", ["status"])
    assert (table.installed()["look"].last, table.installed()["look"].result) == (NOW, "success"), "another time only"
    table.remove("look")


def test_what_somebody_put_into_the_block_is_kept_behind_it(on_cron: On) -> None:
    on_cron.inv("schedule.install", "--yes")
    begin, *ours, end = crontab(on_cron).splitlines(keepends=True)
    mixed = [FOREIGN.splitlines(keepends=True)[1], *ours[:2], b"# photos: at night\n", b"7 3 * * * photos\n", *ours[2:]]
    on_cron.shell.run(["crontab", "-"], input=b"".join([begin, *mixed, end]))
    assert {name: one["state"] for name, one in on_cron.shown().items()} == dict.fromkeys(
        ("look", "nightly"), "installed"
    )
    commented = [b"#" + one if b"schedule.run look" in one else one for one in mixed]
    on_cron.shell.run(["crontab", "-"], input=b"".join([begin, *commented, end]))
    on_cron.inv("schedule.install", "--yes")
    theirs = mixed[0] + b"# photos: at night\n7 3 * * * photos\n"
    assert crontab(on_cron) == b"".join([begin, *ours, end]) + theirs
    on_cron.inv("schedule.remove", "--yes")
    assert crontab(on_cron) == theirs


def test_a_cron_without_its_daemon_is_said(on_cron: On) -> None:
    there = Crontab(on_cron.shell, Caller(platform="shop", python="", folder="/", stamps="/tmp/stamps"))
    assert there.warning() == ""
    on_cron.do("kill $(cat /tmp/cron.pid)")
    assert "no cron daemon runs there, so nothing begins them" in on_cron.inv("schedule.show")
    on_cron.do(A_DAEMON)


def run_line(on: On, by: str = "sh") -> str:
    """What cron would do for the schedule `look`, as it does it."""
    line = next(one for one in crontab(on).decode().splitlines() if "schedule.run look" in one)
    command = line.split(None, 5)[5].replace("\\%", "%")
    return on.shell.run(["env", "-i", "PATH=/usr/bin:/bin", by, "-c", command], deadline=60).stdout


def stamped(on: On) -> Path:
    return on.machine.root / "srv" / "incidents" / ".schedules" / "shop.look.json"


def test_cron_runs_what_is_due_and_what_was_missed_once(on_cron: On) -> None:
    on_cron.inv("schedule.install", "--yes")
    assert stamped(on_cron).stat().st_mode & 0o777 == 0o600
    run_line(on_cron)
    assert "ended" not in json.loads(stamped(on_cron).read_text()), "it was installed now: nothing is due"
    stamped(on_cron).write_text(json.dumps({"begun": "2026-01-01T00:00:00+00:00"}))
    local = on_cron.machine.root / "usr/local/bin/crontab"
    local.write_text('#!/bin/sh\n[ "$SSH_CONNECTION" ] || touch /tmp/asked\nexec /usr/bin/crontab "$@"\n')
    local.chmod(0o755)
    run_line(on_cron, "tcsh")  # as with SHELL=/bin/tcsh in the crontab
    local.unlink()
    assert (on_cron.machine.root / "tmp/asked").exists(), "what is in /usr/local/bin is found, as by systemd"
    ran = stamped(on_cron).read_text()
    assert json.loads(ran)["code"] == 0
    assert on_cron.shown()["look"]["result"] == "success"
    run_line(on_cron)
    assert stamped(on_cron).read_text() == ran, "however often it was missed, it runs once"
    on_cron.is_renamed()
    assert not stamped(on_cron).parent.exists(), "nothing is left of it"
