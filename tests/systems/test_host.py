"""The kind host, on real machines: what they say of themselves, their services, and the fence, also after a reboot."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from salvor import clock, shell
from salvor.change import Level, Reachable, State
from salvor.errors import CannotError, NotConvergedError
from salvor.host import facts, fence, health, services
from salvor.host.facts import Disk
from salvor.host.health import Look
from salvor.hosts import work
from salvor.shell import Shell
from salvor.ssh.settings import JumpSettings, SshSettings
from salvor.system import Context
from salvor.systems.host import Host, HostSettings

from tests import machine, ssh_server
from tests.machine import OLD_SCRIPT, Machine
from tests.ssh_server import Account

pytestmark = pytest.mark.timeout(120)


def opened(made: Machine, context: Context, **more: object) -> Host:
    said = {"kind": "host", "address": made.address, "ssh": made.settings, **more}
    return Host("web", HostSettings.model_validate(said), context)


def shell_of(host: Host) -> Shell:
    return host.settings.host.open()


# ------------------------------------------------------------------------------------------ the fence


@contextmanager
def machine_fenced_by(program: str) -> Iterator[Machine]:
    with machine.running(systemd="systemd" in program) as made:
        if "iptables" in program:
            (made.root / "usr" / "sbin" / "nft").unlink()
        yield made


@pytest.mark.parametrize("program", ["nftables, systemd", "iptables, scripts"])
def test_a_fence_leaves_the_operator_alone_also_after_a_reboot(
    program: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "_BODY", fence._BODY.replace(f"sleep {fence._EVERY};", "sleep 0.2;"))
    with machine_fenced_by(program) as made:
        tries: dict[str, Callable[[float], bool]] = {
            "operator": lambda within: made.answers(within=within),
            "stranger": lambda within: made.answers(source=made.stranger, within=within),
            "IPv6": lambda within: made.answers(address=made.address6, within=within),
            "to the operator": lambda within: made.sends(made.operator, within=within),
            "to IPv6": lambda within: made.sends(made.operator6, within=within),
            "of a guest": lambda within: made.sends(made.operator, within=within, guest=True),
            "from the port of SSH": lambda within: made.calls_back(within=within),
        }

        def ways(expected: dict[str, bool]) -> dict[str, bool]:
            def one(name: str) -> bool:
                return tries[name](5.0 if expected[name] else 0.5)

            with ThreadPoolExecutor(len(tries)) as pool:
                return dict(zip(tries, pool.map(one, tries), strict=True))

        open_ = dict.fromkeys(tries, True)
        cut = {**dict.fromkeys(open_, False), "operator": True}
        host = opened(made, context)
        seen = host.observe()
        made.take_a_guest()
        assert (seen.reachable, seen.writable) == (Reachable.UP, True)
        assert ways(open_) == open_
        with socket.create_connection((made.address, 22), 2, (made.stranger, 0)) as intruder:
            assert intruder.recv(100).startswith(b"SSH-2.0")
            host.fence(seen.identity)
            assert host.observe().writable is False
            assert ways(cut) == cut
            intruder.sendall(b"SSH-2.0-intruder\r\n")
            intruder.settimeout(0.5)
            with pytest.raises(TimeoutError):
                intruder.recv(100)
        if made.systemd:  # a firewall that is started takes all rules away before it brings its own
            shell_of(host).run(["systemctl", "start", "nftables"])
            until = time.monotonic() + 20
            while (found := ways(cut)) != cut and time.monotonic() < until:
                time.sleep(0.1)
            assert found == cut
        made.stop()
        made.boot()
        made.take_a_guest()
        again = host.observe()
        assert (again.reachable, again.writable, again.identity) == (Reachable.UP, False, seen.identity)
        assert "fence" in again.summary
        assert (again.details["boot"] != seen.details["boot"]) is made.systemd  # else its kernel is all that booted
        assert ways(cut) == cut
        host.fence(seen.identity)  # finds its work done
        assert host.observe().writable is False
        if made.systemd:  # one that is slow: the guard has the time to bring back what is taken away
            slow = made.root / "usr" / "local" / "sbin" / "ip6tables"
            slow.write_text('#!/bin/sh\nsleep 1\nexec /usr/sbin/ip6tables "$@"\n')
            slow.chmod(0o755)
        host.unfence(seen.identity)
        assert host.observe().writable is True
        assert ways(open_) == open_
        left = shell_of(host).run(
            ["sh", "-c", "find /etc -name '*salvor*fence*'; iptables-save; nft list tables"], check=False
        )
        assert "salvor" not in left.stdout.lower()


def test_another_network_may_be_let_in(old_machine: Machine, context: Context) -> None:
    host = opened(old_machine, context, management=[f"{old_machine.stranger}/32", f"{old_machine.operator6}/128"])
    seen, identity = host.look().fence, host.observe().identity
    # As a server says it that listens for IPv6 and takes IPv4 too.
    mapped = replace(seen, operator=f"::ffff:{old_machine.operator}")
    fence.raise_it(shell_of(host), mapped, host.settings.management, "root")
    try:
        assert old_machine.answers(source=old_machine.stranger)
        assert old_machine.answers(address=old_machine.address6)
        assert not old_machine.sends(old_machine.stranger)
        opened(old_machine, context).fence(identity)
        assert not old_machine.answers(source=old_machine.stranger), "it may no more"
        host.unfence(identity)
        with without(old_machine, "nft"):
            host.fence(identity)
            assert old_machine.answers(address=old_machine.address6)
    finally:
        host.unfence(identity)


@contextmanager
def without(made: Machine, program: str) -> Iterator[None]:
    path = made.root / "usr" / "sbin" / program
    away = path.rename(path.with_name(f"{program}-away"))
    try:
        yield
    finally:
        away.rename(path)


def test_where_rc_local_alone_is_read_at_boot_the_fence_is_in_it_once(old_machine: Machine, context: Context) -> None:
    host, place = opened(old_machine, context), old_machine.root / "etc" / "rc.local"
    identity = host.observe().identity
    try:
        with without(old_machine, "update-rc.d"):
            place.write_text("")
            with pytest.raises(CannotError, match="until its next reboot only"):
                host.fence(identity)
            place.write_text("#!/bin/sh\n/opt/ledger/start &\n")
            for _ in range(2):
                host.fence(identity)
                assert place.read_text() == "#!/bin/sh\nsh /etc/salvor-fence start\n/opt/ledger/start &\n"
            host.unfence(identity)
            assert place.read_text() == "#!/bin/sh\n/opt/ledger/start &\n"
    finally:
        place.unlink()
        host.unfence(identity)


@pytest.mark.parametrize(
    ("came", "operator", "port"),
    [
        ("fe80::1%eth0 50000 fe80::2%eth0 22", "fe80::1", 22),
        ("UNKNOWN 65535 UNKNOWN 65535", "", 0),  # over vsock
    ],
)
def test_the_operator_is_told_without_a_card_and_is_nobody_who_came_by_no_network(
    came: str, operator: str, port: int
) -> None:
    seen = fence.read({"came": [came]})
    assert (seen.operator, seen.port) == (operator, port)


def test_a_fence_that_would_lock_everybody_out_is_refused(old_machine: Machine, context: Context) -> None:
    host = opened(old_machine, context)
    seen = host.look().fence
    assert (seen.operator, seen.port) == (old_machine.operator, 22)
    with pytest.raises(CannotError, match="nobody could reach it"):
        fence.raise_it(shell_of(host), replace(seen, operator=""), (), "root")
    with pytest.raises(CannotError, match="nobody could reach it"):  # as through a tunnel that the machine holds open
        fence.raise_it(shell_of(host), replace(seen, operator="::ffff:127.0.0.1"), (), "root")
    with pytest.raises(CannotError, match="comes from a directory"):
        fence.raise_it(shell_of(host), seen, (), "somebody.of.the.directory")
    for verb in (host.fence, host.unfence):
        with pytest.raises(CannotError, match="is another machine now"):
            verb("machine of another")
    assert old_machine.answers(source=old_machine.stranger)
    assert host.observe().writable is True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs as somebody else")
def test_who_is_not_root_sees_no_fence_and_does_not_say_that_there_is_none() -> None:
    there = shell.local("nobody")
    _, seen = facts.who(there, deadline=10)
    assert (seen.stands, seen.open) == (None, None)
    web = Host("web", HostSettings(kind="host"), Context("i", Path("/nowhere"), dict))
    hidden = State(Reachable.UP, "machine x", seen.open, "it runs", details={"fence": asdict(seen)})
    refused: list[Callable[[], object]] = [
        lambda: fence.raise_it(there, seen, (), ""),
        lambda: work.fence(web, hidden),
        lambda: work.unfence(web, hidden),
    ]
    for one in refused:
        with pytest.raises(CannotError, match="do not run as root"):
            one()


def test_a_fence_that_nothing_keeps_is_not_said_to_be_kept(old_machine: Machine, context: Context) -> None:
    program = old_machine.root / "usr" / "local" / "sbin" / "update-rc.d"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    host = opened(old_machine, context)
    identity = host.observe().identity
    try:
        with pytest.raises(CannotError, match="until its next reboot only"):
            host.fence(identity)
        half = host.observe()
        assert not old_machine.answers(source=old_machine.stranger)
        assert half.writable is None and work.fence(host, half) and not host.is_cut_off()
        program.unlink()
        host.fence(identity)
        assert host.is_cut_off()
        looked = host.look()
        hidden = replace(looked, fence=replace(looked.fence, stands=None, kept=False))  # from who is not root
        assert ("fence", Level.UNKNOWN) in {(one.check, one.level) for one in health.findings("web", hidden)}
        shell_of(host).run(["nft", "flush", "ruleset"])
        gone = host.observe()
        assert gone.writable is True and "rules are gone" in str(gone.details["findings"])
        assert work.fence(host, gone) and work.unfence(host, gone), "its script would come back at the next boot"
    finally:
        program.unlink(missing_ok=True)
        host.unfence(identity)
    assert "fence" not in {one["check"] for one in host.observe().details["findings"]}


def test_a_disk_that_takes_no_file_does_not_keep_the_fence_from_standing(context: Context) -> None:
    with machine.running(systemd=False) as made:
        host = opened(made, context)
        identity = host.observe().identity
        shell_of(host).run(["mount", "-o", "remount,ro", "/"])
        with pytest.raises(CannotError, match="until its next reboot only"):
            host.fence(identity)
        assert not made.answers(source=made.stranger)
        half = host.observe()
        assert half.writable is None
        assert work.fence(host, half) and work.unfence(host, half), "it can be asked for again, and taken away"
        wrong = {(one.check, one.level) for one in health.findings("web", host.look())}
        assert {("/", Level.FAIL), ("fence", Level.WARN)} <= wrong


def test_a_disk_that_hangs_keeps_nobody_from_cutting_its_machine_off(
    old_machine: Machine, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salvor.systems.host._LOOKING", 2.0)
    program = old_machine.root / "usr" / "local" / "bin" / "df"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    host = opened(old_machine, context)
    try:
        seen = host.observe()
        assert (seen.reachable, seen.writable) == (Reachable.UNKNOWN, True) and "does not say how it is" in seen.summary
        host.fence(seen.identity)
        assert host.is_cut_off() and not old_machine.answers(source=old_machine.stranger)
    finally:
        program.unlink()
        host.unfence(host.observe().identity)
    assert not host.is_cut_off()


# ------------------------------------------------------------------------------------------ what it says of itself


def test_a_machine_says_how_it_is_in_one_command(old_machine: Machine, context: Context) -> None:
    host = opened(old_machine, context)
    said = host.look()
    calls = 0
    run = Shell.run

    def counted(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        return run(*words, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shell, "run", counted)
        state = host.observe()
    assert calls == 1
    assert state.identity == f"machine {(old_machine.root / 'etc' / 'machine-id').read_text().strip()}"
    assert said.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # the kernel is ours
    assert said.processors == os.cpu_count()
    assert abs(said.up - float(Path("/proc/uptime").read_text().split()[0])) < 60
    assert said.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < said.memory_free < said.memory
    assert abs(said.clock_offset) <= said.clock_error + 0.1
    (disk,) = said.disks
    place = os.statvfs(old_machine.folder / "disk")
    assert (disk.path, disk.size, disk.inodes) == ("/", place.f_blocks * place.f_frsize, place.f_files)
    json.dumps(asdict(said))


def test_a_full_disk_and_a_wrong_clock_are_found(old_machine: Machine, context: Context) -> None:
    host = opened(old_machine, context)
    shell_of(host).run(["dd", "if=/dev/zero", "of=/filler", "bs=1M", "count=61"])
    try:
        with clock.use(lambda real=clock._system_clock: real() + timedelta(hours=1)):  # type: ignore[misc]
            state = host.observe()
        found = {one["check"]: (one["level"], one["figure"]) for one in state.details["findings"]}
        assert found["/"][0] == Level.WARN
        assert found["/"][1].startswith("9")
        assert (found["clock"][0], found["clock"][1].split()[-1]) == (Level.WARN, "behind")
        assert state.details["clock_offset"] == pytest.approx(-3600, abs=5)
    finally:
        (old_machine.root / "filler").unlink()


def test_the_growth_of_a_disk_is_known_from_an_earlier_look() -> None:
    now = clock.now()
    disk = Disk("/", size=100, used=80, free=20)

    def left(**used: int) -> float | None:
        looks = [Look(now - timedelta(hours=int(hours[1:])), {"/": count}) for hours, count in used.items()]
        return health.days_to_full(disk, looks)

    with clock.use(lambda: now):
        assert health.days_to_full(disk, []) is None
        assert health.days_to_full(disk, [Look(now - timedelta(minutes=1), {"/": 1})]) is None
        assert health.days_to_full(disk, [Look(now - timedelta(days=1), {"/other": 1})]) is None
        assert left(h24=80) is None
        assert left(h24=90) is None
        assert left(h24=70) == pytest.approx(2.0)
        assert left(h1=79, h48=70) == pytest.approx(4.0)


def test_levels_of_a_disk() -> None:
    def level(disk: Disk, looks: list[Look] | None = None) -> list[Level]:
        return [one.level for one in health._disk("web", disk, health.days_to_full(disk, looks or []))]

    assert level(Disk("/", 100, 89, 11)) == []
    assert level(Disk("/", 100, 91, 9)) == [Level.WARN]
    assert level(Disk("/", 100, 97, 3)) == [Level.FAIL]
    assert level(Disk("/", 100, 99, -1)) == [Level.FAIL]
    assert level(Disk("/", 100, 10, 90, inodes=100, inodes_free=2)) == [Level.FAIL]
    assert level(Disk("/", 100, 10, 90, inodes=100, inodes_free=80, read_only=True)) == [Level.FAIL]
    day_ago = Look(clock.now() - timedelta(days=1), {"/": 10})
    assert level(Disk("/", 100, 30, 70), [day_ago]) == [Level.WARN]
    assert level(Disk("/", 100, 60, 40), [day_ago]) == [Level.FAIL]


def test_levels_of_memory_load_and_clock() -> None:
    limits: dict[str, Any] = {"processors": 2, "load": 8.0, "memory": 100, "memory_free": 5, "clock_error": 0.0}
    here = replace(facts.ask(shell.local()), **limits, clock_offset=2.0, disks=(), failed_units=())

    def wrong(**more: float) -> list[tuple[str, Level]]:
        return [(one.check, one.level) for one in health.findings("web", replace(here, **more))]  # type: ignore[arg-type]

    assert wrong() == []
    assert wrong(load=8.1) == [("load", Level.WARN)]
    assert wrong(memory_free=4) == [("memory", Level.WARN)]
    assert wrong(clock_offset=-2.1) == [("clock", Level.WARN)]
    assert wrong(clock_offset=60.0, clock_error=58.0) == [], "it answered late: nobody can tell"


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox here: apt-get install busybox")
@pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server")
def test_busybox_alone_says_as_much(context: Context) -> None:
    programs = Path("/tmp") / f"salvor-busybox-{os.getpid()}"
    programs.mkdir(mode=0o755)
    try:
        subprocess.run(["busybox", "--install", "-s", programs], check=True)
        inner = f'PATH={programs}; export PATH; exec {programs}/sh -c "$SSH_ORIGINAL_COMMAND"'
        with ssh_server.serving("127.0.0.16", more=f"ForceCommand {inner}") as server:
            key = (str(server.home / ".ssh" / "id_ed25519"),)
            settings = SshSettings(
                user=ssh_server.USER,
                port=server.port,
                keys=key,
                agent=False,
                host_keys=((server.folder / "host_key.pub").read_text(),),
            )
            host = Host("web", HostSettings(kind="host", address=server.address, ssh=settings), context)
            assert host.observe().reachable is Reachable.UP
            there, here = host.look(), facts.ask(shell.local())
        assert (there.machine, there.boot, there.memory) == (here.machine, here.boot, here.memory)
        assert [(one.path, one.size, one.inodes) for one in there.disks] == [
            (one.path, one.size, one.inodes) for one in here.disks
        ]
        assert there.fence.operator.startswith("127.0.0.")
    finally:
        shutil.rmtree(programs)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a mount namespace with accounts of its own")
@pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server")
def test_sudo_hides_not_where_the_operator_comes_from(context: Context) -> None:
    account = Account("helper", sudo="ALL=(ALL) NOPASSWD: ALL")
    with ssh_server.serving_accounts([account], "127.0.0.18") as server:
        ssh = {
            "user": "helper",
            "port": server.port,
            "keys": [str(server.home / ".ssh" / "id_ed25519")],
            "host_keys": [(server.folder / "host_key.pub").read_text()],
            "agent": False,
        }
        said = {"kind": "host", "address": server.address, "ssh": ssh, "run_as": "root"}
        seen = Host("web", HostSettings.model_validate(said), context).look().fence
        assert (seen.operator.startswith("127.0.0."), seen.port, seen.stands) == (True, server.port, False)


def test_refused_is_down_and_silence_is_unknown(context: Context) -> None:
    with socket.create_server(("127.0.0.17", 0)) as silent:
        for port, reachable in ((1, Reachable.DOWN), (silent.getsockname()[1], Reachable.UNKNOWN)):
            settings = SshSettings(port=port, user="nobody", agent=False)
            state = Host("web", HostSettings(kind="host", address="127.0.0.17", ssh=settings), context).observe()
            assert (state.reachable, state.writable) == (reachable, None)
            assert "127.0.0.17" in state.summary
    jump = (JumpSettings(address="127.0.0.17", port=1, user="nobody", agent=False),)
    settings = SshSettings(user="nobody", agent=False, jump=jump)
    behind = Host("web", HostSettings(kind="host", address="127.0.0.18", ssh=settings), context)
    state = behind.observe()
    assert (state.reachable, "on the way to" in state.summary) == (Reachable.UNKNOWN, True), "another one refused"
    assert not behind.is_cut_off(), "that we do not reach it tells nothing of others"


# ------------------------------------------------------------------------------------------ services


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    with machine.running(systemd=True) as made:
        yield made


def with_old_script(made: Machine) -> None:
    script = made.root / "etc" / "init.d" / "shop"
    script.write_text(OLD_SCRIPT)
    script.chmod(0o755)


def walk_through(host: Host, manager: str) -> None:
    """Start, stop and restart the service `shop`, each twice."""

    def now() -> tuple[str, str]:
        seen = services.see(shell_of(host), "shop")
        return seen.manager, seen.state

    for _ in range(2):
        host.start("shop")
        assert now() == (manager, "running")
    run = services.see(shell_of(host), "shop").run
    assert run
    host.restart("shop", run)
    second = services.see(shell_of(host), "shop").run
    assert second not in ("", run)
    host.restart("shop", run)
    assert services.see(shell_of(host), "shop").run == second
    for _ in range(2):
        host.stop("shop")
        assert now() == (manager, "stopped")
    with pytest.raises(CannotError, match="no service 'no-such'"):
        host.start("no-such")


def test_services_by_systemd(booted: Machine, context: Context) -> None:
    broken = booted.root / "etc" / "systemd" / "system" / "broken.service"
    broken.write_text("[Service]\nExecStart=/bin/sh -c 'sleep 0.3; exit 7'\n")
    host = opened(booted, context, services=["shop", "broken"])
    shell_of(host).run(["systemctl", "daemon-reload"])
    walk_through(host, "systemd")
    with pytest.raises(NotConvergedError, match=r"failed after its start by systemd(.|\n)*journalctl -u broken"):
        host.start("broken")
    found = {one["check"]: (one["level"], one["figure"]) for one in host.observe().details["findings"]}
    assert found["shop"] == (Level.FAIL, "stopped (systemd)")
    assert found["broken"] == (Level.FAIL, "failed (systemd)")
    assert "broken.service" not in found
    host.start("shop")


def test_services_by_scripts(old_machine: Machine, context: Context) -> None:
    with_old_script(old_machine)
    walk_through(opened(old_machine, context), "sysvinit")


def test_a_script_that_knows_no_status_is_believed_unless_it_fails(old_machine: Machine, context: Context) -> None:
    script = old_machine.root / "etc" / "init.d" / "mute"
    script.write_text("#!/bin/sh\n[ $1 != start ] || exit 0\necho 'Usage: mute {start|stop}'\nexit 3\n")
    script.chmod(0o755)
    host = opened(old_machine, context)
    seen = host.service("mute")
    assert (seen.manager, seen.state) == ("sysvinit", "unknown")
    host.start("mute")
    with pytest.raises(NotConvergedError, match=r"mute .* is unknown after its stop by sysvinit"):
        host.stop("mute")


CHKCONFIG = """#!/bin/sh
# As Red Hat's manual shows it (Deployment Guide of release 5, 16.5): one word for what xinetd starts, else seven.
case "$*" in
'--list rsync') echo "rsync          	$(cat /etc/rsync.state)" ;;
'--list shop') echo 'shop           	0:off	1:off	2:on	3:on	4:on	5:on	6:off' ;;
'rsync on' | 'rsync off') echo "$2" > /etc/rsync.state ;;
*) echo "error reading information on service $2: No such file or directory" >&2; exit 1 ;;
esac
"""


def test_services_of_an_old_red_hat(old_machine: Machine, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scripts are below /etc/rc.d, with links to them; xinetd starts some; and somebody wrote into rc.local."""
    for name in ("_STAYS", "_SETTLES"):
        monkeypatch.setattr(services, name, 0.1)
    etc, host = old_machine.root / "etc", opened(old_machine, context)
    program = old_machine.root / "usr" / "local" / "sbin" / "chkconfig"
    made = [program, etc / "rsync.state", etc / "rc.d" / "rc.local", etc / "rc.d" / "init.d" / "shop", etc / "rc.local"]
    made[3].parent.mkdir(parents=True)
    made[2].write_text("#!/bin/sh\n# old-ledger is gone\n/opt/ledger/bin/start --port 7000 &\n")
    made[4].symlink_to("rc.d/rc.local")
    for path, text in ((program, CHKCONFIG), (etc / "rsync.state", "off\n"), (made[3], OLD_SCRIPT)):
        path.write_text(text)
        path.chmod(0o755)
    xinetd = old_machine.root / "usr" / "local" / "sbin" / "xinetd"
    shutil.copy(old_machine.root / "bin" / "sleep", xinetd)
    try:
        host.start("shop")
        assert [host.service(name).manager for name in ("shop", "rsync", "ledger", "old-ledger")] == [
            "sysvinit", "xinetd", "rc.local", "none",
        ]  # fmt: skip
        assert host.service("rsync").state == "stopped"
        with pytest.raises(NotConvergedError, match=r"rsync .* is failed after its start by xinetd"):
            host.start("rsync")
        shell_of(host).run(["sh", "-c", "xinetd 1000 >/dev/null 2>&1 &"])
        host.start("rsync")
        assert host.service("rsync").state == "running"
        with pytest.raises(CannotError, match="not restarted: xinetd starts it anew for each connection"):
            host.restart("rsync", "")
        host.stop("rsync")
        assert host.service("rsync").state == "stopped"
        with pytest.raises(
            CannotError, match=r"no process bears its name now(.|\n)*/opt/ledger/bin/start --port 7000 &"
        ):
            host.restart("ledger", "")
        host.fence(host.observe().identity)
        host.unfence(host.observe().identity)
        assert made[4].is_symlink()
    finally:
        shell_of(host).run(["sh", "-c", "kill $(pidof xinetd)"], check=False)
        host.stop("shop")
        for path in (*made, xinetd):
            path.unlink()


def test_a_manager_that_does_not_answer_is_not_taken_for_a_service_that_is_absent(
    old_machine: Machine, context: Context
) -> None:
    program = old_machine.root / "usr" / "local" / "bin" / "supervisorctl"
    program.write_text("#!/bin/sh\necho unix:///run/supervisor.sock no such file\nexit 4\n")  # as the real one says it
    program.chmod(0o755)
    try:
        host = opened(old_machine, context)
        seen = host.service("worker")
        assert (seen.manager, seen.state) == ("supervisor", "unknown")
        with pytest.raises(CannotError, match="supervisor is there and does not answer"):
            host.start("worker")
    finally:
        program.unlink()
