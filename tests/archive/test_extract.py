"""A member of an archive, unpacked by a stream: the same tree comes out, or a clear word and nothing outside."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import pytest
from salvor import shell, streams
from salvor.archive import audit, source
from salvor.archive.cipher import encrypted
from salvor.archive.listing import locate
from salvor.change import Finding, Level, Progress
from salvor.errors import CannotError, UsageError

from tests.archive import made
from tests.archive.made import NAME, PASSWORD, by_hand, encrypt, listing, member, pack, platform, settings, unpack

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return platform(tmp_path_factory.mktemp("platform"))


@pytest.fixture(scope="module")
def packed(top: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(top, tmp_path_factory.mktemp("backup") / f"{NAME}.tar.gz")


@pytest.fixture
def password(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(PASSWORD)
    path.chmod(0o600)
    return f"file:{path}"


def nothing_outside(into: Path) -> None:
    """Beside what was unpacked nothing is there, and the canary beside `into` is as it was."""
    assert {path.name for path in into.iterdir()} <= {"tree"}
    assert (into.parent / "canary").read_text() == "untouched"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "canary").write_text("untouched")
    return tmp_path / "into"


# --- what comes out ----------------------------------------------------------------------------------------------


def test_the_same_tree_comes_out(top: Path, packed: Path, into: Path) -> None:
    told: list[Progress] = []
    found = unpack(packed, into, told=told)
    assert listing(into / "tree") == listing(top / "uploads")
    assert (into / "tree/one.jpg").stat().st_ino == (into / "tree/deep/same.jpg").stat().st_ino
    assert set(found.entries) == {"" if name == "." else name for name in listing(top / "uploads")}
    assert told[0].total == packed.stat().st_size
    nothing_outside(into)


def test_a_single_file_comes_out(top: Path, packed: Path, into: Path) -> None:
    unpack(packed, into, ".env")
    assert listing(into / "tree") == listing(top / ".env")


@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar", "oldgnu", "posix"])
def test_every_format_of_tar_is_read(format_: str, top: Path, tmp_path: Path, into: Path) -> None:
    exclude = ["--exclude=long *", "--exclude=raw *", "--exclude=gr*"] if format_ == "ustar" else []
    archive = pack(top, tmp_path / "a.tar.gz", f"--format={format_}", *exclude)
    unpack(archive, into)
    expected = listing(top / "uploads")
    if exclude:
        expected = {
            name: it for name, it in expected.items() if not any(word in name for word in ("long", "raw", "gr"))
        }
    assert {name: it[-1] for name, it in listing(into / "tree").items()} == {n: it[-1] for n, it in expected.items()}


@pytest.mark.parametrize("around", [NAME, f"./{NAME}"])
def test_a_folder_around_everything_with_the_archives_name_is_passed_over(
    around: str, top: Path, tmp_path: Path, into: Path
) -> None:
    archive = tmp_path / "copy.tar.gz"  # renamed meanwhile: the date tells
    made.run("tar", "-czf", archive, f"--transform=s,^\\.,{around},", "-C", top, ".")
    unpack(archive, into)
    assert listing(into / "tree") == listing(top / "uploads")


@pytest.mark.parametrize("suffix", ["tar", "tar.zst", "tgz"])
def test_other_packings(suffix: str, top: Path, tmp_path: Path, into: Path) -> None:
    archive = tmp_path / f"{NAME}.{suffix}"
    made.run("tar", "-caf", archive, "-C", top, ".")
    unpack(archive, into)
    assert listing(into / "tree") == listing(top / "uploads")


def test_several_gzip_parts_in_a_row_are_one_archive(packed: Path, top: Path, tmp_path: Path, into: Path) -> None:
    """As pigz -i writes, and cat joins."""
    plain = gzip.decompress(packed.read_bytes())
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"".join(gzip.compress(plain[at : at + 99_999]) for at in range(0, len(plain), 99_999)))
    unpack(archive, into)
    assert listing(into / "tree") == listing(top / "uploads")


def test_holes_of_a_sparse_file_are_zeros_again(tmp_path: Path, into: Path) -> None:
    top = tmp_path / "top"
    (top / "uploads").mkdir(parents=True)
    with (top / "uploads/sparse").open("wb") as file:
        for at in range(0, 9_000_000, 1_000_000):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(10_000_000)
    for format_ in ("--format=gnu", "--format=pax", "--sparse-version=0.1"):
        archive = pack(
            top, tmp_path / "a.tar.gz", "--sparse", *([format_, "--format=pax"] if "0.1" in format_ else [format_])
        )
        unpack(archive, into, tree="tree")
        assert (into / "tree/sparse").read_bytes() == (top / "uploads/sparse").read_bytes()
        subprocess.run(["rm", "-rf", into], check=True)


def test_folders_that_the_archive_does_not_name_are_made(tmp_path: Path, into: Path) -> None:
    archive = by_hand(tmp_path / "a.tar.gz", [member("uploads/a/b/c.txt", b"c")])
    unpack(archive, into)
    assert (into / "tree/a/b/c.txt").read_bytes() == b"c"
    assert (into / "tree/a").stat().st_mode & 0o777 == 0o755


def test_a_folder_named_after_what_is_in_it_keeps_its_time_and_mode(tmp_path: Path, into: Path) -> None:
    folder = member("uploads/a", type=tarfile.DIRTYPE, mode=0o555, mtime=1_000_000_000)
    other = member("uploads/z", b"z")
    archive = by_hand(tmp_path / "a.tar.gz", [folder, other, member("uploads/a/b", b"b"), member("uploads/y", b"y")])
    unpack(archive, into)
    status = (into / "tree/a").stat()
    assert (status.st_mode & 0o777, status.st_mtime) == (0o555, 1_000_000_000)


@pytest.mark.root
def test_owners_come_back_by_name_and_else_by_number(tmp_path: Path, into: Path) -> None:
    """A machine that was set up anew gives its users other numbers."""
    if os.geteuid():
        pytest.skip("only root gives files away")
    archive = by_hand(
        tmp_path / "a.tar.gz",
        [
            member("uploads/a", b"a", uid=4711, gid=4711, uname="daemon", gname="daemon"),
            member("uploads/b", b"b", uid=4711, gid=4712, uname="nobody knows them", gname=""),
        ],
    )
    found = unpack(archive, into)
    daemon = shell.local().run(["id", "-u", "daemon"]).stdout.strip()
    assert found.owners
    assert (into / "tree/a").stat().st_uid == int(daemon)
    assert ((into / "tree/b").stat().st_uid, (into / "tree/b").stat().st_gid) == (4711, 4712)


@pytest.mark.root
def test_as_another_user_all_is_theirs(packed: Path, top: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root becomes somebody else")
    place = Path(tempfile.mkdtemp(prefix="salvor-archive-"))
    shutil.chown(place, "nobody")
    try:
        assert not unpack(packed, place, there=shell.local("nobody")).owners
        assert (place / "tree/one.jpg").read_bytes() == (top / "uploads/one.jpg").read_bytes()
        assert (place / "tree/one.jpg").owner() == "nobody"
    finally:
        shutil.rmtree(place)


def test_no_file_gets_the_bits_that_lend_rights(tmp_path: Path, into: Path) -> None:
    archive = by_hand(
        tmp_path / "a.tar.gz",
        [
            member("uploads", type=tarfile.DIRTYPE, mode=0o2775),
            member("uploads/shell", b"#!", mode=0o6755),
        ],
    )
    unpack(archive, into)
    assert (into / "tree/shell").stat().st_mode & 0o7777 == 0o755
    assert (into / "tree").stat().st_mode & 0o7777 == 0o2775


def test_an_archive_is_read_where_it_lies_by_the_shell_of_that_machine(top: Path, packed: Path, into: Path) -> None:
    unpack(packed, into, on_host=True)
    assert listing(into / "tree") == listing(top / "uploads")


# --- encrypted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-pbkdf2"], "-pbkdf2"),
        (["-pbkdf2", "-md", "sha512"], "-pbkdf2 -md sha512"),
        (["-md", "sha256"], "-md sha256"),
        ([], "-md sha256"),
        (["-md", "md5"], "-md md5"),
    ],
)
def test_each_way_of_openssl_is_found_and_told(
    options: list[str], told: str, packed: Path, top: Path, tmp_path: Path, into: Path, password: str
) -> None:
    here = tmp_path / packed.name
    here.write_bytes(packed.read_bytes())
    found = unpack(encrypt(here, *options), into, using=settings(password=password))
    assert listing(into / "tree") == listing(top / "uploads")
    assert found.how.endswith(told)


def test_more_iterations_are_a_setting(packed: Path, tmp_path: Path, into: Path, password: str) -> None:
    here = tmp_path / packed.name
    here.write_bytes(packed.read_bytes())
    archive = encrypt(here, "-pbkdf2", "-iter", "77")
    with pytest.raises(CannotError, match="cannot be decrypted") as error:
        unpack(archive, into, using=settings(password=password))
    assert "iterations" in error.value.hint
    using = settings(password=password).model_copy(update={"iterations": 77})
    assert unpack(archive, into, using=using).how.endswith("-pbkdf2 -iter 77")


def test_what_we_encrypt_openssl_decrypts(tmp_path: Path) -> None:
    for size in (0, 1, 15, 16, 17, 100_000):
        content = os.urandom(size)
        secret = tmp_path / "secret"
        pieces = [content[at : at + 999] for at in range(0, size, 999)]
        secret.write_bytes(b"".join(encrypted(iter(pieces), PASSWORD)))
        argv = ["openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-in", str(secret), "-pass", "env:P"]
        done = subprocess.run(argv, capture_output=True, env=os.environ | {"P": PASSWORD}, check=True)
        assert done.stdout == content


def test_a_tar_that_lost_only_its_padding_is_truncated(top: Path, tmp_path: Path, into: Path, password: str) -> None:
    """The tar in it is whole: nothing but the end of the cipher tells."""
    made.run("tar", "-cf", tmp_path / "a.tar", "-C", top, ".")
    archive = encrypt(tmp_path / "a.tar", "-pbkdf2")
    unpack(archive, into, using=settings(password=password))
    shutil.rmtree(into)
    archive.write_bytes(archive.read_bytes()[:-16])
    with pytest.raises(CannotError, match="truncated"):
        unpack(archive, into, using=settings(password=password))


def test_a_wrong_password_is_told_before_anything_is_unpacked(packed: Path, tmp_path: Path, into: Path) -> None:
    here = tmp_path / packed.name
    here.write_bytes(packed.read_bytes())
    (tmp_path / "wrong").write_text("wrong one")
    (tmp_path / "wrong").chmod(0o600)
    with pytest.raises(CannotError, match="the password is wrong") as error:
        unpack(encrypt(here), into, using=settings(password=f"file:{tmp_path}/wrong"))
    assert "wrong one" not in str(error.value)
    assert not list(into.iterdir())


def test_an_encrypted_archive_without_a_password_says_what_to_set(packed: Path, tmp_path: Path, into: Path) -> None:
    here = tmp_path / packed.name
    here.write_bytes(packed.read_bytes())
    with pytest.raises(CannotError, match="names no password"):
        unpack(encrypt(here, "-a"), into)
    with pytest.raises(CannotError, match="written as text") as error:
        (tmp_path / "p").write_text(PASSWORD)
        (tmp_path / "p").chmod(0o600)
        unpack(encrypt(here, "-a"), into, using=settings(password=f"file:{tmp_path}/p"))
    assert "openssl base64 -d" in error.value.hint


# --- damaged -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.zst", "tar.gz.enc"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(
    suffix: str, part: float, top: Path, tmp_path: Path, into: Path, password: str
) -> None:
    archive = tmp_path / f"{NAME}.{suffix.removesuffix('.enc')}"
    made.run("tar", "-caf", archive, "-b1", "-C", top, ".")
    archive = encrypt(archive) if suffix.endswith("enc") else archive
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CannotError, match=r"truncated|damaged|cannot be read|no tar archive"):
        unpack(archive, into, using=settings(password=password))


def test_a_deep_look_names_what_would_not_give_the_tree_back(top: Path, tmp_path: Path, password: str) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    pack(top, folder / "good_20250129_120000.tar.gz")
    by_hand(folder / "without_20250128_120000.tar.gz", [member("build/index.html", b"x")])
    cut_off = encrypt(pack(top, tmp_path / "cut_20250127_120000.tar.gz"))
    (folder / cut_off.name).write_bytes(cut_off.read_bytes()[:20])
    (folder / "empty_20250126_120000.tar.gz").touch()
    found = audit.look(settings(password=password, folder=str(folder)), shell.local(), "media", deep=True)
    (integrity,) = (one for one in found if isinstance(one, Finding) and one.check == "integrity")
    assert (integrity.level, integrity.figure) == (Level.FAIL, "3 damaged of 4 archives")
    assert "empty_20250126_120000.tar.gz is empty" in integrity.detail
    assert "without_20250128_120000.tar.gz has no 'uploads' in it; it has 'build'" in integrity.detail
    assert "cut_20250127_120000.tar.gz.enc ends too early: it is truncated" in integrity.detail


def test_an_archive_that_ends_between_two_members_is_refused(top: Path, tmp_path: Path, into: Path) -> None:
    """Python's tarfile takes that for its end."""
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as made_:
        made_.add(top / "uploads", "uploads")
        end = made_.offset
    archive.write_bytes(archive.read_bytes()[:end])
    with pytest.raises(CannotError, match="truncated"):
        unpack(archive, into)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.gz.enc"])
def test_flipped_bits_are_never_unpacked_as_if_all_were_well(
    suffix: str, top: Path, tmp_path: Path, into: Path, password: str
) -> None:
    archive = tmp_path / f"{NAME}.{suffix.removesuffix('.enc')}"
    made.run("tar", "-caf", archive, "-C", top, ".")
    archive = encrypt(archive) if suffix.endswith("enc") else archive
    made.run("sh", "-c", 'cd "$1" && sha256sum "$2" > "$2.sha256"', "sh", str(tmp_path), archive.name)
    whole = archive.read_bytes()
    for at in (600, len(whole) // 3, len(whole) // 2, len(whole) - 700):
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CannotError):
            unpack(archive, into, using=settings(password=password))
        subprocess.run(["rm", "-rf", into], check=True)
    archive.write_bytes(whole)
    unpack(archive, into, using=settings(password=password))


def test_a_damaged_header_in_the_midst_is_not_the_end(tmp_path: Path, into: Path) -> None:
    """Python's tarfile takes that for the end too."""
    archive = by_hand(tmp_path / "a.tar", [member(f"uploads/{n}", b"x" * 100) for n in range(10)], "w")
    content = bytearray(archive.read_bytes())
    content[5 * 1024] ^= 1
    archive.write_bytes(content)
    with pytest.raises(CannotError, match="damaged 5,632 bytes into"):
        unpack(archive, into)


def test_the_checksum_beside_is_compared(packed: Path, tmp_path: Path, into: Path) -> None:
    archive = tmp_path / packed.name
    archive.write_bytes(packed.read_bytes())
    beside = archive.with_name(f"{archive.name}.sha256")
    beside.write_text(f"{'0' * 64}  {archive.name}\n")
    with pytest.raises(CannotError, match="is not what was written"):
        unpack(archive, into)
    beside.write_text("nonsense")
    with pytest.raises(CannotError, match="holds no SHA-256"):
        unpack(archive, tmp_path / "into2")


def test_what_is_no_archive_is_told(tmp_path: Path, into: Path) -> None:
    for content, match in (
        (b"", "is empty"),
        (b"-- PostgreSQL database dump\n" * 100, "no tar archive"),
        (gzip.compress(b"SELECT 1;" * 1000), "what it unpacks to starts with"),
        (os.urandom(5000), "no tar archive"),
    ):
        (tmp_path / "a.tar.gz").write_bytes(content)
        with pytest.raises(CannotError, match=match):
            unpack(tmp_path / "a.tar.gz", into)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar.gz.enc")
    with pytest.raises(CannotError, match="no tar archive") as caught:
        unpack(tmp_path / "a.tar.gz.enc", into)
    assert "openssl enc -nosalt" in caught.value.hint
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(CannotError, match="has no 'uploads' in it; it has nothing"):
        unpack(tmp_path / "a.tar", into)


def test_an_archive_without_the_member_says_what_it_has(packed: Path, into: Path) -> None:
    with pytest.raises(CannotError, match=r"has no 'media' in it; it has .*'uploads'"):
        unpack(packed, into, "media")


def test_something_after_the_end_is_refused(packed: Path, tmp_path: Path, into: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(packed.read_bytes() * 2)
    with pytest.raises(CannotError, match="something follows its end"):
        unpack(archive, into)


def test_a_source_that_goes_silent_is_given_up(
    packed: Path, tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SILENCE", 0.8)
    monkeypatch.setattr(streams, "_SHORT", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(packed.read_bytes()[:200_000])
            time.sleep(3)

    threading.Thread(target=feed, daemon=True).start()
    told: list[Progress] = []
    begun = time.monotonic()
    with pytest.raises(CannotError, match="Nothing could be read from"):
        unpack(pipe, into, told=told)
    assert time.monotonic() - begun < 2.5
    assert any(": waiting for more for " in one.label and one.label.endswith(" at most") for one in told)


def test_a_disk_that_is_full_is_told(packed: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root mounts a disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    made.run("mount", "-t", "tmpfs", "-o", "size=200k", "none", disk)
    try:
        with pytest.raises(CannotError, match="does not fit"):
            unpack(packed, disk / "into")
    finally:
        made.run("umount", disk)


def test_it_is_not_begun_in_a_folder_with_something_in_it(packed: Path, into: Path) -> None:
    into.mkdir()
    (into / "mine").touch()
    with pytest.raises(CannotError, match="is not empty"):
        unpack(packed, into)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        locate(str(tmp_path / "nothing.tar.gz"), shell.local())
