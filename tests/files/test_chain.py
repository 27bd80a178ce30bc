"""The whole chain for a tree: from damage to a live, proven copy and back again; here, and over a real sshd."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from salvor import console, inventory
from salvor.change import Level
from salvor.errors import CannotError, NotProvenError, UsageError
from salvor.session import Session, aftermath
from salvor.show import Plain

from tests import ssh_server
from tests.files import platform
from tests.files.lab import Lab, act, everything
from tests.files.platform import describe, journals, letters, lose
from tests.sandbox.test_secrets_stay import Looker


@pytest.fixture
def shop(lab: Lab, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> Lab:
    """The platform, with a backup of its tree."""
    for name, value in platform.environment(lab).items():
        monkeypatch.setenv(name, value)
    act(describe(lab), "backup", kind="snapshot")
    return lab


def recover(**wishes: object) -> Session:
    session = platform.session(**wishes)
    console.recover(session, Plain(), yes=True)
    return session


def test_ransomware_is_noticed_and_undone(shop: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    was = everything(shop.tree)
    lose(shop.tree)
    ruined = everything(shop.tree)
    incident = recover().incident
    assert everything(shop.tree) == was
    assert "shop is back." in capsys.readouterr().out
    (journal,) = journals(shop)
    assert "nothing was lost: " in journal.of("decision")[0]["decision"]["seen"]
    assert [line["change"]["verb"] for line in journal.of("intent") if line["change"]["system"] == "media"] == [
        "fence",
        "stage",
        "promote",
    ]
    assert letters(shop) == ["declared", "recovered"]
    aftermath.undo(incident.id, Plain(), yes=True)
    assert everything(shop.tree) == ruined
    assert platform.beside(shop) == ["media"]


def test_a_deleted_tree_comes_back_and_a_second_command_finds_nothing_to_do(shop: Lab) -> None:
    was = everything(shop.tree)
    shutil.rmtree(shop.tree)
    first = recover().incident.id
    assert everything(shop.tree) == was
    lines = len(journals(shop)[0].lines)
    assert recover().incident.id == first
    assert len(journals(shop)[0].lines) == lines


def test_a_plan_of_a_tree_writes_nothing(shop: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lose(shop.tree)
    before = everything(shop.root / "srv"), everything(shop.root / "local")
    console.recover(platform.session(), Plain(), plan_only=True)
    assert (everything(shop.root / "srv"), everything(shop.root / "local")) == before
    shown = capsys.readouterr().out
    for word in ("fence", "stage side-tree", "promote", "one exchange of names", "demote"):
        assert word in shown


def test_what_the_checks_do_not_pass_is_not_cut_over(shop: Lab) -> None:
    for picture in shop.tree.glob("*.jpg"):
        picture.unlink()
    act(describe(shop), "backup", kind="snapshot")
    lose(shop.tree)
    ruined = everything(shop.tree)
    with pytest.raises(NotProvenError, match="the pictures are there: 0"):
        recover()
    shop.tree.chmod(0o755)  # the fence
    assert everything(shop.tree) == ruined


def test_no_way_back_is_said_with_every_reason(shop: Lab) -> None:
    shutil.rmtree(shop.root / "local")
    shutil.rmtree(shop.tree)
    with pytest.raises(CannotError, match="snapshot: local: There is nothing to read at the repository local"):
        recover()


def test_a_check_that_a_tree_does_not_understand_is_placed(shop: Lab) -> None:
    path = shop.root / "inventory" / "shop.yaml"
    good = path.read_text()
    for old, new, told in (
        ("ask: changed", "ask: everything", "'everything' cannot be asked of a tree"),
        ("ask: changed", "sql: select 1", "it is asked by ask, not by sql"),
    ):
        path.write_text(good.replace(old, new))
        with pytest.raises(UsageError, match=told) as caught:
            inventory.load("shop")
        assert caught.value.what.startswith(f"{path}:12:")


# ------------------------------------------------------------------------------------------ on another host


@pytest.fixture
def there(shop: Lab, empty_repository: Path) -> Iterator[Lab]:
    """The tree, its repository and its owner on another host, reached over SSH as a user who is not root."""
    base = Path(tempfile.mkdtemp(prefix="salvor-files-"))
    try:
        base.chmod(0o755)
        far = Lab(base, {"local": str(base / "local")})
        shutil.copytree(empty_repository, base / "local")
        (far.tree / "sub").mkdir(parents=True)
        (far.tree / "sub" / "한국.jpg").write_bytes(os.urandom(5000))
        (far.tree / "link").symlink_to("sub")
        (base / "password").write_text((shop.root / "password").read_text())
        (base / "password").chmod(0o600)
        for path in (base, *base.rglob("*")):
            account = pwd.getpwnam(ssh_server.USER)
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        yield far
    finally:
        shutil.rmtree(base)


@pytest.mark.skipif(ssh_server.SSHD is None, reason="there is no sshd")
def test_a_tree_of_another_host_comes_back(there: Lab, shop: Lab) -> None:
    with ssh_server.serving("127.0.0.12") as server:
        key = (server.folder / "host_key.pub").read_text().strip()
        door = {
            "user": ssh_server.USER, "port": server.port, "keys": [f"{server.home}/.ssh/id_ed25519"],
            "host_keys": [key], "agent": False,
        }  # fmt: skip
        system = describe(there, address="127.0.0.12", ssh=door)
        shutil.copy(there.root / "inventory" / "shop.yaml", shop.root / "inventory")
        act(system, "backup", kind="snapshot")
        was = everything(there.tree)
        shutil.rmtree(there.tree / "sub")
        ruined = everything(there.tree)
        session = recover()
        assert everything(there.tree) == was
        assert not [one for _, one in session.incident.findings if one.level is Level.FAIL and _ == "verify"]
        aftermath.undo(session.incident.id, Plain(), yes=True)
        assert everything(there.tree) == ruined

        (there.tree / "secret").write_text("for root only")
        (there.tree / "secret").chmod(0)
        shutil.chown(there.tree / "secret", "root")
        with pytest.raises(CannotError, match=r"1 of what local was to get could not be read, first '.*secret'"):
            act(system, "backup", kind="snapshot")
        assert [one.usable for one in system.backups()] == [False, True]


def test_a_host_without_restic_says_so(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = lab.root / "bin"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name != "restic":
            (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(CannotError, match="restic is not installed on this machine") as caught:
        act(lab.open(), "backup", kind="snapshot")
    assert "apt-get install restic" in str(caught.value)


def test_no_secret_is_in_an_argument_or_a_file(shop: Lab) -> None:
    lose(shop.tree)
    looker = Looker(os.getpid(), sys.argv, {"the password": (shop.root / "password").read_text().strip()})
    looker.start()
    recover()
    looker.over.set()
    looker.join()
    assert looker.looked
    assert not looker.found
    words = (shop.root / "password").read_bytes().strip()
    for path in shop.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != "password":
            assert words not in path.read_bytes(), path
