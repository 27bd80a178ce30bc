"""Members that would reach out of the stage are refused by name, and nothing outside of it is touched."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from salvor.archive import vetting
from salvor.archive.members import normal
from salvor.errors import CannotError

from tests.archive.made import by_hand, member, run, unpack

pytestmark = pytest.mark.timeout(60)

LINK, HARD, FOLDER = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
Member = tuple[tarfile.TarInfo, bytes]


def link(name: str, target: str, kind: bytes = LINK) -> Member:
    return member(name, type=kind, linkname=target)


FINE = member("uploads/fine.txt", b"fine")
HOSTILE: dict[str, tuple[Sequence[Member], str]] = {
    "absolute path": ([member("/etc/passwd", b"root::0:0")], r"'/etc/passwd' has an absolute path"),
    "absolute path of the stage": ([member("/srv/x/tree/a", b"")], "absolute path"),
    "climbs": ([member("uploads/../../etc/passwd", b"")], r"climbs out of the archive with '\.\.'"),
    "climbs from the top": ([member("../uploads/x", b"")], "climbs out"),
    "climbs though not ours": ([FINE, member("logs/../../x", b"")], "climbs out"),
    "link to an absolute path": (
        [link("uploads/l", "/etc")],
        r"'uploads/l' is a link to '/etc', which leads out of 'uploads'",
    ),
    "link that climbs": ([link("uploads/a/l", "../../x")], "leads out"),
    "link of the whole": ([link("uploads", "/etc")], "leads out"),
    "empty link": ([link("uploads/l", "")], "leads out"),
    "link to its parent's parent": ([link("uploads/l", "..")], "leads out"),
    "link through a link": (
        [member("uploads/a/b", type=FOLDER), link("uploads/a/up", ".."), link("uploads/l", "a/up/../x")],
        r"'uploads/l' is a link to 'a/up/\.\./x', which leads out",
    ),
    "link through a link that comes later": (
        [link("uploads/l", "a/up/../x"), member("uploads/a/b", type=FOLDER), link("uploads/a/up", "..")],
        "leads out",
    ),
    "through a link": (
        [member("uploads/d", type=FOLDER), link("uploads/l", "d"), member("uploads/l/x", b"")],
        r"'uploads/l/x' is to be unpacked through the link 'l'",
    ),
    "through a link, deeper": ([link("uploads/l", "d"), member("uploads/l/x/y/z", b"")], "through the link 'l'"),
    "through a file": ([member("uploads/f", b""), member("uploads/f/x", b"")], "through the file 'f'"),
    "through the root": ([member("uploads", b""), member("uploads/x", b"")], "through the file 'uploads'"),
    "hard link to the outside": ([link("uploads/l", "/etc/shadow", HARD)], "is a hard link to '/etc/shadow'"),
    "hard link that climbs": ([link("uploads/l", "uploads/../../x", HARD)], "is a hard link to"),
    "hard link to another tree": ([member("build/a", b""), link("uploads/l", "build/a", HARD)], "is a hard link to"),
    "hard link to what is not there": ([link("uploads/l", "uploads/none", HARD)], "is a hard link to"),
    "hard link to a folder": ([member("uploads/d", type=FOLDER), link("uploads/l", "uploads/d", HARD)], "hard link"),
    "hard link to itself": ([link("uploads/l", "uploads/l", HARD)], "is a hard link to"),
    "hard link to a link, elsewhere": (
        [link("uploads/a/b/l", "../../x"), link("uploads/m", "uploads/a/b/l", HARD)],
        "'uploads/m' is a link to '../../x', which leads out",
    ),
    "character device": ([member("uploads/d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "is a device"),
    "block device": ([member("uploads/d", type=tarfile.BLKTYPE, devmajor=8, devminor=0)], "is a device"),
    "pipe": ([member("uploads/p", type=tarfile.FIFOTYPE)], r"is a pipe \(fifo\)"),
    "unknown type": ([member("uploads/u", type=b"Z")], "of an unknown kind"),
    "twice": ([FINE, FINE], "'uploads/fine.txt' is in it twice"),
    "twice, written otherwise": ([FINE, member("./uploads//./fine.txt", b"other")], "is in it twice"),
    "folder, then file": ([member("uploads/d", type=FOLDER), member("uploads/d", b"")], "is in it twice"),
    "link, then folder": ([link("uploads/d", "x"), member("uploads/d", type=FOLDER)], "is in it twice"),
    "line break": ([member("uploads/a\nb", b"")], r"'uploads/a\\nb' has a line break in its name"),
    "name that no disk takes": ([member("uploads/" + "€" * 86, b"")], r"' has a longer name than disks take"),
    "path that no disk takes": ([member("uploads/" + "d/" * 2001 + "a", b"")], r"'\.\.\. has a longer name"),
    "impossible owner": ([member("uploads/a", b"", uid=1 << 40)], "has an impossible owner"),
}


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "canary").write_text("untouched")
    return tmp_path / "into"


def leads_to(link: Path) -> Path:
    """Where a link leads; one that leads in a circle leads nowhere but to itself (realpath would say elsewhere)."""
    try:
        return Path(os.path.realpath(link, strict=True))
    except OSError as error:
        return link.parent.resolve() / link.name if error.errno == errno.ELOOP else Path(os.path.realpath(link))


def untouched(into: Path) -> None:
    assert {path.name for path in into.parent.iterdir()} <= {"canary", "into", "a.tar.gz", "top"}
    assert (into.parent / "canary").read_text() == "untouched"
    for path in into.rglob("*"):
        assert not path.is_symlink() or leads_to(path).is_relative_to(into.resolve())
        assert path.is_symlink() or path.is_file() or path.is_dir()


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_by_name(kind: str, tmp_path: Path, into: Path) -> None:
    members, match = HOSTILE[kind]
    archive = by_hand(tmp_path / "a.tar.gz", [member("uploads", type=FOLDER), *members] if kind[0] != "t" else members)
    with pytest.raises(CannotError, match=match) as error:
        unpack(archive, into)
    assert "nothing outside of the stage was touched" in error.value.safe
    untouched(into)


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if "link" in kind and "hard" not in kind])
def test_trust_lets_links_lead_out_and_writes_nothing_through_them(kind: str, tmp_path: Path, into: Path) -> None:
    members, _ = HOSTILE[kind]
    archive = by_hand(tmp_path / "a.tar.gz", members)
    if kind.startswith(("through", "empty", "link, then")):
        with pytest.raises(CannotError):
            unpack(archive, into, trusted=True)
    else:
        unpack(archive, into, trusted=True)
    assert (into.parent / "canary").read_text() == "untouched"
    assert {path.name for path in into.parent.iterdir()} == {"canary", "into", "a.tar.gz"}


def test_links_within_the_tree_are_as_they_were(tmp_path: Path, into: Path) -> None:
    links = {
        "uploads/a/up": "..",
        "uploads/a/b/deep": "../../x/y",
        "uploads/dangling": "nowhere",
        "uploads/home": "/srv/shop/uploads/a",
        "uploads/root": ".",
        "uploads/loop": "loop",
        "uploads/winding": "a/b/../b/../../fine.txt",
        "uploads/a/turn": "turn",
        "uploads/a/through a loop": "turn/../b",
    }
    archive = by_hand(tmp_path / "a.tar.gz", [FINE, *(link(name, target) for name, target in links.items())])
    unpack(archive, into, home="/srv/shop/uploads")
    for name, target in links.items():
        assert os.readlink(into / name.replace("uploads", "tree", 1)) == target  # noqa: PTH115  as it was written
    for home, target in (
        ("/srv/shop/uploads", "/srv/shop/uploads-old"),
        ("/srv/shop/uploads", "/srv/shop/uploads/../x"),
    ):
        archive = by_hand(tmp_path / "a.tar.gz", [FINE, link("uploads/home", target)])
        shutil.rmtree(into)
        with pytest.raises(CannotError, match="leads out"):
            unpack(archive, into, home=home)


def test_what_is_hostile_elsewhere_in_the_archive_does_not_matter(tmp_path: Path, into: Path) -> None:
    others = [
        link("logs/l", "/etc"),
        member("logs/p", type=tarfile.FIFOTYPE),
        member("logs/x", b"1"),
        member("logs/x", b"2"),
    ]
    unpack(by_hand(tmp_path / "a.tar.gz", [FINE, *others]), into)
    assert (into / "tree/fine.txt").read_bytes() == b"fine"


def test_a_bomb_is_defused_before_its_disk_is_full(tmp_path: Path, into: Path) -> None:
    """Sparse: a few bytes that say that they are eight terabytes."""
    top = tmp_path / "top"
    (top / "uploads").mkdir(parents=True)
    with (top / "uploads/huge").open("wb") as file:
        file.truncate(8 << 40)
    for format_ in ("gnu", "pax"):
        run("tar", "-C", top, f"--format={format_}", "-S", "-czf", tmp_path / "a.tar.gz", "uploads")
        with pytest.raises(CannotError, match=r"'uploads/huge' \(8,796,093.0 MB\) does not fit"):
            unpack(tmp_path / "a.tar.gz", into)
        shutil.rmtree(into)
    shutil.rmtree(top)


def test_a_large_file_at_the_beginning_is_no_bomb(tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size stands in its header, before any of it was read."""
    monkeypatch.setattr(vetting, "_RATIO_FROM", 1 << 20)
    monkeypatch.setattr(vetting, "_RATIO", 1)
    content = os.urandom(30 << 20)
    unpack(by_hand(tmp_path / "a.tar", [member("uploads/large", content)], "w"), into)
    assert (into / "tree/large").read_bytes() == content


def test_a_bomb_is_told_by_its_ratio(tmp_path: Path, into: Path) -> None:
    with (
        gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=9) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for number in range(4):
            info = tarfile.TarInfo(f"uploads/{number}")
            info.size = 20 << 20
            with (tmp_path / "canary").open("rb"), Path("/dev/zero").open("rb") as zeros:
                tar.addfile(info, zeros)
    with pytest.raises(CannotError, match="unpacks to 250 times"):
        unpack(tmp_path / "a.tar.gz", into)
    shutil.rmtree(into)
    found = unpack(tmp_path / "a.tar.gz", into, trusted=True)
    assert found.size == 80 << 20
    shutil.rmtree(into)


def test_headers_without_end_take_no_memory(tmp_path: Path, into: Path) -> None:
    """An extended header may say that it is a gigabyte long; and headers may follow headers."""
    info = tarfile.TarInfo("uploads/x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(10 << 20)))
    with pytest.raises(CannotError, match="its headers are too long"):
        unpack(tmp_path / "a.tar.gz", into)
    info.size = 0
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() * 20_000 + bytes(10240)))
    with pytest.raises(CannotError, match="damaged"):
        unpack(tmp_path / "a.tar.gz", into)


def test_lies_about_sizes_are_damage(tmp_path: Path, into: Path) -> None:
    sizes = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "uploads/s",
        "GNU.sparse.realsize": "512",
    }
    twice = b"2\n0\n512\n0\n512\n".ljust(1024, b"\0") + tarfile.TarInfo("tree/evil").tobuf()
    for content in (b"1\n0\n999999\n", b"1\n-5\n3\n", b"2\n5\n3\n0\n3\n", b"1\n0\nx\n", b"9" * 500, twice):
        body = content.ljust(512, b"\0")
        info = tarfile.TarInfo("uploads/x")
        info.pax_headers, info.size = sizes, len(body)
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + body + bytes(10240)))
        with pytest.raises(CannotError, match=r"damaged|truncated"):
            unpack(tmp_path / "a.tar.gz", into)
    for headers in ({"size": "-1"}, {"mtime": "nan"}, {"mtime": "1e300"}):
        info = tarfile.TarInfo("uploads/x")
        info.pax_headers = headers
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + bytes(10240)))
        with pytest.raises(CannotError, match=r"damaged|impossible"):
            unpack(tmp_path / "a.tar.gz", into)


# --- what nobody thought of --------------------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "b", "..", ".", "", "uploads", "tree", "\u202e", "\udcff", "x" * 120, "-C", "--to=/"])
PATHS = st.lists(WORDS, min_size=1, max_size=5).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, FOLDER, LINK, HARD, tarfile.FIFOTYPE])


@given(st.lists(st.tuples(PATHS, KINDS, PATHS), max_size=8))
@example([("--to=/", tarfile.SYMTYPE, "--to=//a")])
@settings(max_examples=40, deadline=None)
def test_whatever_the_names_are_nothing_outside_is_touched(members: list[tuple[str, bytes, str]]) -> None:
    home = Path(tempfile.mkdtemp(prefix="salvor-hostile-"))
    try:
        (home / "canary").write_text("untouched")
        made = [member("uploads", type=FOLDER)]
        for name, kind, target in members:
            content = b"x" if kind == tarfile.REGTYPE else b""
            made.append(member(f"uploads/{name}", content, type=kind, linkname=target))
        archive = by_hand(home / "a.tar.gz", made)
        try:
            found = unpack(archive, home / "into")
        except CannotError:
            pass
        else:
            there = {os.fsencode(path) for path in (home / "into/tree").rglob("*")}
            assert len(there) == len(found.entries) - 1
        untouched(home / "into")
    finally:
        shutil.rmtree(home)


@given(st.text(st.characters(codec=None), max_size=30))
@example("a\0b")
def test_a_normal_path_stays_below_any_folder(name: str) -> None:
    try:
        found = normal(name)
    except ValueError:
        assert name.startswith("/") or ".." in name.split("/") or "\0" in name
    else:
        assert os.path.normpath(f"/into/{found}").startswith("/into")
        assert normal(found) == found and "\0" not in found
