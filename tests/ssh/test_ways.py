"""The ways to a host: old algorithms, other servers and shells, machines on the way, ~/.ssh/config, kinds of keys."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import paramiko
import pytest
from paramiko import common
from salvor import shell
from salvor.errors import CannotError, OutcomeUnknownError, UsageError
from salvor.shell import Shell
from salvor.ssh import known, route
from salvor.ssh.channel import Channel
from salvor.ssh.openssh import Master
from salvor.ssh.settings import JumpSettings, SshSettings

from tests import ssh_server
from tests.ssh_server import Server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a mount namespace")
Client = Literal["paramiko", "openssh"]
BOTH: list[Client] = ["paramiko", "openssh"]

DSA = {
    "host_key": "dsa",
    "user_key": "rsa",
    "more": "HostKeyAlgorithms ssh-dss\nKexAlgorithms diffie-hellman-group1-sha1\nCiphers 3des-cbc\nMACs hmac-sha1\n"
    "PubkeyAcceptedAlgorithms +ssh-rsa",
}
SHA1 = {
    "host_key": "rsa",
    "user_key": "rsa",
    "more": "HostKeyAlgorithms ssh-rsa\nKexAlgorithms diffie-hellman-group14-sha1\nCiphers aes128-cbc\nMACs hmac-md5\n"
    "PubkeyAcceptedAlgorithms +ssh-rsa",
}


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def modern() -> Iterator[Server]:
    with ssh_server.serving() as server:
        yield server


@pytest.fixture
def at_home(modern: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of our own, with the key and the known host of `modern`."""
    shutil.copytree(modern.home / ".ssh", tmp_path / ".ssh")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ssh"


def settings(server: Server, **more: Any) -> SshSettings:
    files = sorted(str(path) for path in (server.home / ".ssh").glob("id_*") if not path.suffix)
    said: dict[str, Any] = {"user": ssh_server.USER, "port": server.port, "keys": files, "agent": False, **more}
    said.setdefault("host_keys", [(server.folder / "host_key.pub").read_text()])
    return SshSettings.model_validate(said)


def reach(server: Server, deadline: float = 15.0, **more: Any) -> Shell:
    return shell.connect(server.address, settings=settings(server, **more), deadline=deadline)


# ------------------------------------------------------------------------------------------ old hosts


@pytest.mark.parametrize(
    ("host", "opened"),
    [
        (
            DSA,
            "key exchange diffie-hellman-group1-sha1, host key ssh-dss, cipher 3des-cbc, signature of our key ssh-rsa",
        ),
        (
            SHA1,
            "key exchange diffie-hellman-group14-sha1, host key ssh-rsa, cipher aes128-cbc, "
            "checksum of packets hmac-md5, signature of our key ssh-rsa",
        ),
    ],
    ids=["DSA, group1, 3des", "ssh-rsa, group14-sha1, aes128-cbc"],
)
def test_an_old_host_is_reached_by_what_it_needs_and_no_more(host: dict[str, str], opened: str) -> None:
    with ssh_server.serving("127.0.0.10", **host) as old:
        for client in BOTH:
            with pytest.raises(CannotError, match="knows no algorithm that is still in use") as refused:
                reach(old, client=client)
            assert "legacy: true" in refused.value.hint
        there = reach(old, legacy=True)
        assert there.run(["printf", "%s", "it's 주문"]).stdout == "it's 주문"
        (remark,) = there.remarks
        assert remark.endswith(f"opened for it alone: {opened}")
        with pytest.raises(OutcomeUnknownError, match="it was stopped there"):
            there.run(["sleep", "20"], deadline=1.0)


def test_an_old_host_that_says_nothing_is_given_up_at_its_deadline() -> None:
    with socket.create_server(("127.0.0.10", 0)) as silent:
        settings = SshSettings(port=silent.getsockname()[1], user="nobody", agent=False, legacy=True)
        with pytest.raises(CannotError, match="timed out"):
            shell.connect("127.0.0.10", settings=settings, deadline=1.0)


def test_nothing_is_opened_for_a_host_that_needs_nothing(modern: Server) -> None:
    there = reach(modern, legacy=True)
    assert there.run(["echo", "x"]).stdout == "x\n"
    assert there.remarks == ()


def test_an_old_host_whose_key_is_another_is_refused() -> None:
    with ssh_server.serving("127.0.0.10", **DSA) as old, ssh_server.serving("127.0.0.10", **DSA) as other:
        key = (other.folder / "host_key.pub").read_text()
        with pytest.raises(CannotError, match="has changed: it shows ssh-dss SHA256:") as refused:
            reach(old, legacy=True, host_keys=[key])
        assert old.fingerprint in refused.value.what
        assert other.fingerprint in refused.value.what
        assert "host_keys" in refused.value.hint


# ------------------------------------------------------------------------------------------ other servers and shells


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("client", BOTH)
def test_dropbear(client: Client) -> None:
    with ssh_server.dropbear("127.0.0.10") as server:
        there = reach(server, client=client)
        assert there.run(["printf", "%s", 'a "b" $c'], environment={"A": "b"}).stdout == 'a "b" $c'
        assert there.run(["cat"], input=b"x" * 300_000).stdout == "x" * 300_000
        with pytest.raises(OutcomeUnknownError, match="it was stopped there"):
            there.run(["sleep", "20"], deadline=1.0)
        assert there.run(["sh", "-c", "echo said >&2; exit 3"], check=False).stderr == "said\n"


@needs_root
@pytest.mark.root
@pytest.mark.parametrize("client", BOTH)
def test_commands_that_overlap_on_a_dropbear(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends a connection when a process there ends after a channel was opened and before that has a command."""
    execute = Channel.execute

    def late(channel: Channel, line: str, seconds: float) -> None:
        time.sleep(0.1)
        execute(channel, line, seconds)

    monkeypatch.setattr(Channel, "execute", late)
    with ssh_server.dropbear("127.0.0.10", forced='sh -c "$SSH_ORIGINAL_COMMAND"; sleep 0.05') as server:
        there = reach(server, client=client)
        said = [there.run(["echo", str(number)]).stdout for number in range(3)]
        with ThreadPoolExecutor(1) as threads:
            meanwhile = threads.submit(there.run, ["sleep", "0.4"])
            time.sleep(0.2)
            said += [there.run(["echo", str(number)]).stdout for number in range(3, 6)]
            assert meanwhile.result().exit_code == 0
        assert said == [f"{number}\n" for number in range(6)]
        assert (server.folder / "log").read_text().count("auth succeeded") == 2


@needs_root
@pytest.mark.root
def test_nothing_is_sent_on_a_channel_that_is_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropbear ends a connection for it."""
    send = paramiko.Transport._send_user_message

    def late(connection: paramiko.Transport, message: paramiko.Message) -> None:
        if message.asbytes()[:1] in (common.cMSG_CHANNEL_EOF, common.cMSG_CHANNEL_WINDOW_ADJUST):
            time.sleep(0.2)
        send(connection, message)

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", late)
    with ssh_server.dropbear("127.0.0.10") as server:
        there = reach(server)
        assert there.run(["true"]).exit_code == 0
        assert len(there.run(["head", "-c", "300000", "/dev/zero"]).stdout) == 300_000
        assert there.run(["echo", "x"]).stdout == "x\n"
        assert (server.folder / "log").read_text().count("auth succeeded") == 1


@pytest.mark.parametrize("client", BOTH)
def test_a_connection_that_breaks_before_a_command_is_begun(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with ssh_server.serving("127.0.0.10") as server:
        there = reach(server, client=client)
        assert there.run(["echo", "x"]).stdout == "x\n"
        kind, name = (Channel, "execute") if client == "paramiko" else (Master, "begin")
        begin = getattr(kind, name)
        breaking = [server.end_sessions]

        def late(*arguments: Any) -> Any:
            if breaking:
                breaking.pop()()
            return begin(*arguments)

        monkeypatch.setattr(kind, name, late)
        unlink = paramiko.Channel._unlink

        def slow(channel: paramiko.Channel) -> None:  # the connection is gone, and is still called active
            unlink(channel)
            time.sleep(0.2)

        monkeypatch.setattr(paramiko.Channel, "_unlink", slow)
        assert there.run(["echo", "y"]).stdout == "y\n"


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox here: apt-get install busybox")
@pytest.mark.parametrize("client", BOTH)
def test_a_host_that_has_busybox_alone(client: Client, tmp_path: Path) -> None:
    programs = Path("/tmp") / f"salvor-busybox-{os.getpid()}-{client}"
    programs.mkdir(mode=0o755)
    try:
        subprocess.run(["busybox", "--install", "-s", programs], check=True)
        (programs / "ssh").unlink(missing_ok=True)
        inner = f'PATH={programs}; export PATH; exec {programs}/sh -c "$SSH_ORIGINAL_COMMAND"'
        with ssh_server.serving("127.0.0.10", more=f"ForceCommand {inner}") as server:
            there = reach(server, client=client)
            assert there.run(["sh", "-c", "command -v ps"]).stdout == f"{programs}/ps\n"
            folder = there.run(["mktemp", "-d"]).stdout.strip()
            there.write(f"{folder}/a file", "주문\n")
            assert there.read(f"{folder}/a file") == "주문\n"
            with pytest.raises(OutcomeUnknownError, match="it was stopped there"):
                there.run(["sh", "-c", f"sleep 9{os.getpid()}1 & sleep 9{os.getpid()}2"], deadline=1.0)
            said = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
            assert f"sleep 9{os.getpid()}" not in said
            there.run(["rm", "-r", folder])
    finally:
        shutil.rmtree(programs)


def test_a_login_shell_of_another_family() -> None:
    with ssh_server.serving("127.0.0.10", more='ForceCommand exec tcsh -c "$SSH_ORIGINAL_COMMAND"') as server:
        there = reach(server)
        words = ["it's", "!x", "a\nb", "\\n", "$HOME", "`id`"]
        assert there.run(["printf", "%s|", *words]).stdout == "".join(f"{word}|" for word in words)


@pytest.mark.parametrize("client", BOTH)
def test_a_profile_that_prints(client: Client) -> None:
    noise = "ForceCommand printf 'Welcome!\\nAll is logged.\\n'; echo hm >&2; exec sh -c \"$SSH_ORIGINAL_COMMAND\""
    with ssh_server.serving("127.0.0.10", more=noise) as server:
        there = reach(server, client=client)
        assert there.run(["echo", "mine"]).stdout == "mine\n"
        assert list(there.stream(["printf", "a\\nb"], deadline=5)) == ["a", "b"]
        assert there.read("/no/such/file") is None


@pytest.mark.parametrize("client", BOTH)
@pytest.mark.parametrize(
    ("forced", "says"),
    [
        ("echo This account is currently not available.; exit 1", "exit code 1, saying: This account is currently not"),
        ("/bin/false", "exit code 1 and said nothing"),
    ],
)
def test_an_account_without_a_shell(client: Client, forced: str, says: str) -> None:
    with ssh_server.serving("127.0.0.10", more=f"ForceCommand {forced}") as server:
        with pytest.raises(CannotError, match=f"runs no command: its login ended with {says}") as refused:
            reach(server, client=client).run(["touch", "/nothing"], deadline=10)
        assert refused.value.safe == "the command was not begun"


# ------------------------------------------------------------------------------------------ machines on the way


@pytest.mark.parametrize("client", BOTH)
def test_a_host_behind_two_others(modern: Server, client: Client) -> None:
    with ssh_server.serving("127.0.0.11") as outer, ssh_server.serving("127.0.0.12") as inner:
        way = [
            JumpSettings(address=one.address, **settings(one).model_dump(exclude={"jump", "sudo_password", "client"}))
            for one in (outer, inner)
        ]
        there = reach(modern, jump=way, client=client)
        came_from = there.run(["sh", "-c", "echo $SSH_CLIENT; echo $SSH_CONNECTION"]).stdout
        assert there.run(["echo", "through"]).stdout == "through\n"
        assert modern.address in came_from
        for server in (outer, inner):  # neither runs anything of ours, both carry the connection
            assert server.sessions()
        with pytest.raises(OutcomeUnknownError, match="it was stopped there"):
            there.run(["sleep", "20"], deadline=1.0)
        inner.end_sessions()
        with pytest.raises((OutcomeUnknownError, CannotError)):
            there.run(["sleep", "5"], deadline=3)
        assert there.run(["echo", "again"], deadline=10).stdout == "again\n"


def test_an_old_host_behind_two_others_of_which_one_is_old() -> None:
    with ExitStack() as stack:
        outer = stack.enter_context(ssh_server.serving("127.0.0.11"))
        inner = stack.enter_context(ssh_server.serving("127.0.0.12", **SHA1))
        old = stack.enter_context(ssh_server.serving("127.0.0.13", **DSA))
        way = [
            JumpSettings(
                address=one.address,
                legacy=one is inner,
                **settings(one).model_dump(exclude={"jump", "sudo_password", "client", "legacy"}),
            )
            for one in (outer, inner)
        ]
        there = reach(old, jump=way, legacy=True, deadline=30)
        assert there.run(["echo", "found"]).stdout == "found\n"
        assert len(there.remarks) == 2


def test_a_machine_on_the_way_whose_key_is_not_known(modern: Server) -> None:
    with ssh_server.serving("127.0.0.11") as outer, ssh_server.serving("127.0.0.12") as other:
        jump = settings(outer, host_keys=[(other.folder / "host_key.pub").read_text()])
        way = [JumpSettings(address=outer.address, **jump.model_dump(exclude={"jump", "sudo_password", "client"}))]
        for client in BOTH:
            with pytest.raises(CannotError, match="has changed") as refused:
                reach(modern, jump=way, client=client)
            assert outer.fingerprint in refused.value.what
            assert f"{outer.address}:{outer.port}" in refused.value.what


# ------------------------------------------------------------------------------------------ ~/.ssh/config


@pytest.mark.parametrize("client", BOTH)
def test_the_users_own_configuration(modern: Server, at_home: Path, client: Client) -> None:
    (at_home / "id_ed25519").rename(at_home / "my key")
    (at_home / "more").write_text(
        f'Host dear\n  HostName {modern.address}\n  Port {modern.port}\n  IdentityFile "{at_home}/my key"\n'
    )
    (at_home / "config").write_text(f"Include more\nHost *\n  User {ssh_server.USER}\n  StrictHostKeyChecking no\n")
    known_hosts = (at_home / "known_hosts").read_text()
    (at_home / "known_hosts").write_text("")
    with pytest.raises(CannotError, match="is not known"):  # whatever the configuration says
        shell.connect("dear", settings=SshSettings(client=client, agent=False))
    (at_home / "known_hosts").write_text(known_hosts)
    there = shell.connect("dear", settings=SshSettings(client=client, agent=False))
    assert there.run(["id", "-un"]).stdout.strip() == ssh_server.USER


def test_jumps_of_the_users_own_configuration(modern: Server, at_home: Path) -> None:
    with ssh_server.serving("127.0.0.11") as outer:
        key = outer.home / ".ssh" / "id_ed25519"
        with (at_home / "known_hosts").open("a") as opened:
            opened.write((outer.home / ".ssh" / "known_hosts").read_text())
        (at_home / "config").write_text(
            f"Host bastion\n  HostName {outer.address}\n  Port {outer.port}\n  IdentityFile {key}\n"
            f"Host target\n  HostName {modern.address}\n  Port {modern.port}\n  ProxyJump bastion\n"
            f"Host *\n  User {ssh_server.USER}\n"
        )
        assert shell.connect("target").run(["echo", "x"]).stdout == "x\n"
        assert outer.sessions()


def test_a_proxy_command_is_left_to_openssh(modern: Server, at_home: Path) -> None:
    (at_home / "config").write_text(
        f"Host far\n  Port {modern.port}\n  HostName {modern.address}\n  User {ssh_server.USER}\n"
        f'  ProxyCommand python3 -c "import socket,os,sys,threading,shutil;'
        f"s=socket.create_connection(('%h',%p));"
        f"threading.Thread(target=lambda:[s.sendall(d) for d in iter(lambda:os.read(0,9999),b'')],daemon=True).start();"
        f"[os.write(1,d) for d in iter(lambda:s.recv(9999),b'')]\"\n"
    )
    assert shell.connect("far").run(["echo", "x"]).stdout == "x\n"


def test_a_configuration_that_makes_no_sense(at_home: Path) -> None:
    (at_home / "config").write_text("Host far\n  HostName -oProxyCommand=x\n")
    with pytest.raises(UsageError, match="neither a host's name nor an IP address"):
        shell.connect("far")


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=x", "a b", "it's", 'a"b', "a;id", "$(id)", "a\nb", "", "user@host", "../x", "주문"]
)
def test_what_is_no_name_of_a_host(name: str) -> None:
    with pytest.raises(CannotError, match="neither a host's name nor an IP address"):
        shell.connect(name, user="x", deadline=1)


@pytest.mark.parametrize("user", ["-oProxyCommand=x", "a b", "it's", "$(id)", ""])
def test_what_is_no_name_of_a_user(user: str) -> None:
    with pytest.raises(ValueError, match="no user's name"):
        SshSettings(user=user)


# ------------------------------------------------------------------------------------------ keys


def test_known_hosts_as_openssh_reads_them(at_home: Path) -> None:
    ssh_server.make_key(at_home / "a")
    key = " ".join((at_home / "a.pub").read_text().split()[:2])
    file = at_home / "known_hosts"
    cases = {
        f"host,[other]:2222 {key}": {
            ("host", 22): True,
            ("other", 2222): True,
            ("other", 22): False,
            ("HOST", 22): True,
        },
        f"*.example.com,!bad.example.com {key}": {("a.example.com", 22): True, ("bad.example.com", 22): False},
        f"[10.0.0.?]:2222 {key}": {("10.0.0.5", 2222): True, ("10.0.0.5", 22): False},
        f"# host {key}": {("host", 22): False},
        "host ssh-ed25519 !!!": {("host", 22): False},
        f"@cert-authority * {key}": {("host", 22): False},
    }
    for line, expected in cases.items():
        file.write_text(f"{line}\n")
        for (host, port), is_known in expected.items():
            assert bool(known.look_up(host, port, [str(file)]).keys) == is_known, (line, host, port)
    file.write_text(f"hashed.example.com {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "hashed.example.com" not in file.read_text()
    assert known.look_up("hashed.example.com", 22, [str(file)]).keys
    assert not known.look_up("other.example.com", 22, [str(file)]).keys


@pytest.mark.parametrize("client", BOTH)
def test_a_host_key_that_was_revoked(modern: Server, at_home: Path, client: Client) -> None:
    key = " ".join((modern.folder / "host_key.pub").read_text().split()[:2])
    with (at_home / "known_hosts").open("a") as opened:
        opened.write(f"@revoked * {key}\n")
    with pytest.raises(CannotError, match="revoked"):
        reach(modern, client=client, host_keys=[])


@pytest.mark.parametrize("client", BOTH)
def test_a_key_with_a_passphrase(
    modern: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    key = tmp_path / "locked"
    shutil.copy(modern.home / ".ssh" / "id_ed25519", key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", key], check=True, capture_output=True)
    with pytest.raises(CannotError, match=r"(does not open|refuses us)"):
        reach(modern, keys=[str(key)], client=client)
    monkeypatch.setenv("OPENS", "open sesame")
    there = reach(modern, keys=[str(key)], passphrase="env:OPENS", client=client)
    assert there.run(["echo", "x"]).stdout == "x\n"


def test_a_named_key_that_is_not_there(modern: Server, tmp_path: Path) -> None:
    with pytest.raises(CannotError, match=r"nowhere for .* cannot be read: No such file"):
        reach(modern, keys=[f"{tmp_path}/nowhere"])


@pytest.mark.parametrize("client", BOTH)
def test_the_keys_of_an_agent(modern: Server, at_home: Path, monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    socket = at_home / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert agent.poll() is None
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", at_home / "id_ed25519"], check=True, capture_output=True)
        (at_home / "id_ed25519").unlink()
        assert reach(modern, keys=(), agent=True, client=client).run(["echo", "x"]).stdout == "x\n"
        with pytest.raises(CannotError, match="refuses us"):
            reach(modern, keys=(), agent=False, client=client)
    finally:
        agent.kill()
        agent.wait()


def test_the_way_is_the_same_however_often_it_is_asked_for(modern: Server) -> None:
    assert route.plan(modern.address, settings(modern)) == route.plan(modern.address, settings(modern))
    assert reach(modern).link() is reach(modern).link()  # type: ignore[attr-defined]
