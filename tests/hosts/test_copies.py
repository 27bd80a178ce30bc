"""Files to machines and back: what arrives, what is said, and what is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from salvor.change import Progress
from salvor.errors import CannotError, UsageError
from salvor.hosts import copies, rolling, show
from salvor.journal import Journal
from salvor.show import Plain

from tests import ssh_server
from tests.hosts.test_hosts import reached
from tests.ssh_server import Server

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(ssh_server.SSHD is None, reason="no sshd here: apt-get install openssh-server"),
]
HOW = rolling.rolling(0, None, "20s")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with ssh_server.serving("127.0.0.46") as one:
        yield one


@pytest.fixture
def two(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A platform of one machine that answers, and one that is down."""
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(tmp_path / "incidents"))
    down = {"kind": "host", "address": "127.0.0.47", "ssh": {"user": "nobody", "port": 1}}
    systems = {"up": {"kind": "host", **reached(server)}, "down": down}
    (tmp_path / "machines.yaml").write_text(yaml.safe_dump({"systems": systems, "services": {}}))
    return "machines"


@pytest.fixture
def there() -> Iterator[Path]:
    """A folder that the server's user may write."""
    with TemporaryDirectory(prefix="salvor copies ") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_there_and_back(two: str, there: Path, tmp_path: Path) -> None:
    content = os.urandom(9_000_000)
    (tmp_path / "shop.conf").write_bytes(content)
    stream = io.StringIO()
    copies.upload(two, "up", str(tmp_path / "shop.conf"), f"{there}/", "644", HOW, Plain(stream))
    assert (there / "shop.conf").read_bytes() == content
    assert (there / "shop.conf").stat().st_mode & 0o777 == 0o644
    assert stream.getvalue().splitlines() == ["ok      done on 1: up", "        8.6 MiB, the checksums agree"]
    copies.download(two, "up", str(there / "shop.conf"), str(tmp_path / "back"), HOW, Plain(stream))
    assert (tmp_path / "back" / "up" / "shop.conf").read_bytes() == content
    titles = sorted(Journal.read(one).lines[0]["title"] for one in (tmp_path / "incidents").glob("*-hosts-*"))
    assert [one.split(":")[0] for one in titles] == ["hosts.download", "hosts.upload"]
    assert str(there / "shop.conf") in titles[1]


def test_a_machine_that_is_down_holds_up_none_and_is_no_success(two: str, there: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    stream = io.StringIO()
    with pytest.raises(CannotError, match="unreachable on 1 of 2 machines"):
        copies.upload(two, "*", str(tmp_path / "one"), f"{there}/one", "644", HOW, Plain(stream))
    assert (there / "one").read_text() == "1"
    assert "ok      done on 1: up" in stream.getvalue()


def test_what_the_machine_refuses_is_its_failure(two: str, there: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    stream = io.StringIO()
    with pytest.raises(CannotError, match="failed on 1 of 1 machines"):
        copies.upload(two, "up", str(tmp_path / "one"), f"{there}/nowhere/one", "600", HOW, Plain(stream))
    with pytest.raises(CannotError, match="failed on 1 of 1 machines"):
        copies.download(two, "up", f"{there}/nothing", str(tmp_path / "back"), HOW, Plain(stream))
    assert stream.getvalue().count("FAIL    failed on 1: up") == 2
    assert "There is no file" in stream.getvalue()
    assert list((tmp_path / "back" / "up").iterdir()) == []


@pytest.mark.parametrize(
    ("file", "to", "mode"), [("nothing", "/tmp/x", "600"), ("here", "x", "600"), ("here", "/tmp/x", "rw")]
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    two: str, tmp_path: Path, file: str, to: str, mode: str
) -> None:
    (tmp_path / "here").write_text("1")
    with pytest.raises(UsageError) as caught:
        copies.upload(two, "*", str(tmp_path / file), to, mode, HOW, Plain(io.StringIO()))
    assert caught.value.safe == "nothing was copied"
    with pytest.raises(UsageError):
        copies.download(two, "*", "relative", str(tmp_path), HOW, Plain(io.StringIO()))
    assert not (tmp_path / "incidents").exists()


def test_how_far_the_copies_are_is_told() -> None:
    with show.counting(Plain(io.StringIO()), 3) as count:
        count.answered(True)
        count.moved("a", Progress(1024, 2048, "bytes"))
        count.moved("b", Progress(0, 2048, "bytes"))
        assert count.text().startswith("1 of 3 machines, 1 of them with an error; 1.0 KiB of 4.0 KiB, 25 %")
