"""A tree on this machine: backed up, lost, staged beside, proven, swapped in, and swapped back."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator

import pytest
from salvor.change import Finding, Level, Reachable, WayBack
from salvor.checks import Check, run
from salvor.errors import CannotError, CommandError, UsageError
from salvor.files import snapshot
from salvor.systems.files import Files
from salvor.wish import Wish

from tests.files.lab import INCIDENT, Lab, act, everything

HOUR = Wish(rpo=3600.0)


def way_of(system: Files, wish: Wish = HOUR) -> WayBack:
    (way,) = [one for one in system.ways_back(wish) if one.name == "snapshot"]
    return way


def staged(system: Files, wish: Wish = HOUR) -> WayBack:
    """Stage what the way back offers."""
    way = way_of(system, wish)
    assert way.possible, way.why
    assert way.arguments
    act(system, "stage", **way.arguments)
    return way


def judged(findings: Iterator[Finding]) -> dict[str, Level]:
    return {one.check: one.level for one in findings}


def promote(system: Files, way: WayBack) -> None:
    act(system, "promote", **way.promote)


def demote(system: Files, way: WayBack) -> None:
    assert way.promote_undo
    act(system, way.promote_undo.verb, **way.promote_undo.arguments)


# ------------------------------------------------------------------------------------------ there and back


def test_a_tree_comes_back_bit_for_bit_and_the_old_one_is_kept(lab: Lab) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    (lab.tree / "plain").write_bytes(b"ruined")
    shutil.rmtree(lab.tree / "sub")
    ruined, live = everything(lab.tree), system.observe().identity
    way = staged(system)
    assert everything(lab.tree) == ruined
    assert everything(lab.box / "staged") == was
    assert judged(system.verify(way, HOUR)) == {
        "content": Level.PASS,
        "as it was backed up": Level.PASS,
        "hard links": Level.PASS,
        "where links lead": Level.PASS,
        "freshness": Level.PASS,
    }
    for _ in range(2):
        promote(system, way)
        act(system, "stage", **dict(way.arguments or {}))
        state = system.observe()
        assert (state.origin, state.writable, state.staged) == (INCIDENT, True, ())
        assert everything(lab.tree) == was
        assert [(one.identity, one.incident) for one in state.kept] == [(live, INCIDENT)]
        assert everything(lab.box / "kept") == ruined
    for _ in range(2):
        demote(system, way)
        assert system.observe().identity == live
        assert everything(lab.tree) == ruined
        assert [one.complete for one in system.observe().staged] == [True]
    act(system, "drop", stage="side-tree")
    assert not lab.box.exists()
    assert everything(lab.tree) == ruined


def test_a_tree_that_is_gone_with_the_folder_around_it_comes_back(lab: Lab) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    shutil.rmtree(lab.tree.parent)
    state = system.observe()
    assert (state.reachable, state.identity, state.writable) == (Reachable.DOWN, "absent", False)
    way = way_of(system)
    (told,) = [one for one in act(system, "stage", **dict(way.arguments or {})) if isinstance(one, Finding)]
    assert (told.level, told.figure) == (Level.WARN, f"{lab.tree.parent} was gone, and is made anew")
    assert stat.S_IMODE(lab.tree.parent.stat().st_mode) == 0o755, "who uses the tree must reach it"
    assert Level.FAIL not in judged(system.verify(way, HOUR)).values()
    promote(system, way)
    assert everything(lab.tree) == was
    assert not system.observe().kept
    for _ in range(2):
        demote(system, way)
        assert not lab.tree.exists()
    promote(system, way)
    assert everything(lab.tree) == was


def test_what_an_application_made_anew_meanwhile_is_kept(lab: Lab) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    shutil.rmtree(lab.tree)
    way = staged(system)
    lab.tree.mkdir()
    (lab.tree / "upload").write_text("of a customer")
    promote(system, way)
    assert everything(lab.tree) == was
    assert (lab.box / "kept" / "upload").read_text() == "of a customer"
    demote(system, way)
    identity = system.observe().identity
    shutil.rmtree(lab.tree)  # and what was pinned is gone when its place is taken
    act(system, "promote", identity=identity, stage=way.stage)
    assert everything(lab.tree) == was


def test_settings_that_were_emptied_come_back_and_no_value_is_shown(lab: Lab) -> None:
    path = lab.root / "srv" / ".env"
    path.write_text("# shop\nPORT=80\nexport API_KEY='hunter22'\nDEBUG=no\n")
    path.chmod(0o640)
    system = lab.open(path, name="settings")
    act(system, "backup", kind="snapshot")
    was = everything(path)
    path.write_text("DEBUG=yes\nNEW=1\n")
    way = staged(system)
    found = {one.check: one for one in system.verify(way, HOUR)}
    difference = found["settings, against what is live"]
    assert difference.figure == "2 added, 1 removed, 1 changed"
    assert difference.detail == "added API_KEY, PORT; removed NEW; changed DEBUG"
    assert "hunter22" not in str(found)
    promote(system, way)
    assert everything(path) == was
    demote(system, way)
    assert path.read_text() == "DEBUG=yes\nNEW=1\n"


def test_a_path_behind_a_link_stays_behind_it(lab: Lab) -> None:
    link = lab.root / "www"
    link.symlink_to(lab.tree.parent)
    system, was = lab.open(link / "media"), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    (lab.tree / "plain").unlink()
    promote(system, staged(system))
    assert link.is_symlink()
    assert everything(lab.tree) == was


def test_a_path_full_of_what_means_something_elsewhere(lab: Lab) -> None:
    tree = lab.root / "srv" / "--a [b]*c? $(d) \\e'f"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "node").write_text("x")
    other = tree.with_name("--a bXXc? $(d) \\e'f")
    other.mkdir()
    system, was = lab.open(tree), everything(tree)
    act(system, "backup", kind="snapshot")
    shutil.rmtree(tree / "sub")
    way = staged(system)
    assert Level.FAIL not in judged(system.verify(way, HOUR)).values()
    promote(system, way)
    assert everything(tree) == was
    assert system.ask("changed", "live") == 0


def test_a_path_too_long_for_the_place_of_a_stage_is_not_called_damage(lab: Lab) -> None:
    folder = lab.tree
    while len(str(folder)) < 4080 - len(str(lab.tree)):
        folder /= "d" * min(100, 4095 - len(str(lab.tree)) - len(str(folder)))
        folder.mkdir()
    system = lab.open()
    act(system, "backup", kind="snapshot")
    with pytest.raises(CannotError, match=r": A path of \w+ from local is too long below .*/building on"):
        staged(system)


def test_an_undo_takes_nothing_away_when_what_was_kept_is_gone(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way = staged(system)
    promote(system, way)
    promoted = everything(lab.tree)
    shutil.rmtree(lab.box / "kept")
    with pytest.raises(CannotError, match=r"nothing to go back to: .*/kept is gone"):
        demote(system, way)
    assert everything(lab.tree) == promoted


def test_discard_removes_what_was_kept_and_nothing_else(lab: Lab) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    identity = system.observe().identity
    act(system, "fence", identity=identity)
    promote(system, staged(system))
    (kept,) = system.observe().kept
    with pytest.raises(CannotError, match="it was not removed"):
        act(system, "discard", identity="another", kept=kept.name)
    later = lab.open(incident="20261122T000000Z-shop-0001")
    for _ in range(2):
        act(later, "discard", identity=kept.identity, kept=kept.name)
        assert not later.observe().kept
    assert everything(lab.tree) == was
    assert [one.name for one in lab.tree.parent.iterdir()] == ["media"]


# ------------------------------------------------------------------------------------------ the fence


def test_the_fence_keeps_others_out_and_leaves_no_trace(lab: Lab) -> None:
    system = lab.open()
    lab.tree.chmod(0o2770)
    before, identity = everything(lab.tree), system.observe().identity
    for _ in range(2):
        act(system, "fence", identity=identity)
        assert system.observe().writable is False
        assert lab.tree.stat().st_mode & 0o577 == 0
    act(system, "unfence", identity="another")
    assert system.observe().writable is False
    for _ in range(2):
        act(system, "unfence", identity=identity)
        assert system.observe().writable is True
    assert everything(lab.tree) == before
    with pytest.raises(CannotError, match="somebody replaced it"):
        act(system, "fence", identity="another")


def test_a_fence_goes_with_what_it_fences(lab: Lab) -> None:
    system, was = lab.open(), everything(lab.tree)
    act(system, "backup", kind="snapshot")
    identity = system.observe().identity
    act(system, "fence", identity=identity)
    way = staged(system)
    promote(system, way)
    assert system.observe().writable is True
    assert everything(lab.tree) == was
    demote(system, way)
    assert system.observe().writable is False
    act(system, "unfence", identity=identity)
    assert everything(lab.tree) == was


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("path", ["media", "/", "/srv/../etc", "/srv//media", "/srv/media/", "/srv/a\nb"])
def test_a_path_that_could_not_be_swapped_is_refused(lab: Lab, path: str) -> None:
    with pytest.raises(ValueError, match="is not the absolute path"):
        lab.open(path)


def test_a_password_in_a_location_is_refused_and_not_shown(lab: Lab) -> None:
    with pytest.raises(ValueError, match="a password in a location") as caught:
        Lab(lab.root, {"off": "rest:https://u:hunter22@backup.example.com/"}).open()
    assert "hunter22" not in str(caught.value.errors(include_input=False))  # type: ignore[attr-defined]


def test_what_somebody_replaced_meanwhile_is_left_alone(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way = staged(system)
    lab.tree.rename(lab.root / "elsewhere")
    lab.tree.mkdir()
    with pytest.raises(CannotError, match="somebody replaced it"):
        promote(system, way)
    assert list(lab.tree.iterdir()) == []
    lab.tree.rmdir()
    (lab.root / "elsewhere").rename(lab.tree)
    promote(system, way)
    lab.tree.rename(lab.root / "elsewhere")
    lab.tree.mkdir()
    with pytest.raises(CannotError, match="somebody replaced it"):
        demote(system, way)
    act(system, "drop", stage="side-tree")
    assert list(lab.tree.iterdir()) == []
    lab.tree.rmdir()
    (lab.root / "elsewhere").rename(lab.tree)
    demote(system, way)
    assert system.observe().identity == way.promote["identity"]


def test_nothing_is_moved_over_what_stands_there(lab: Lab) -> None:
    path = lab.root / "srv" / ".env"
    path.write_text("A=1")
    system = lab.open(path, name="settings")
    act(system, "backup", kind="snapshot")
    path.write_text("A=2")
    way = staged(system)
    (box,) = path.parent.glob(".env.salvor-*")
    (box / "kept").write_text("of somebody")
    with pytest.raises(CommandError, match="is in the way"):
        promote(system, way)
    assert {one.read_text() for one in (path, box / "staged", box / "kept")} == {"A=1", "A=2", "of somebody"}


def test_a_half_built_stage_is_not_promoted(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way = staged(system)
    marker = json.loads((lab.box / "salvor.json").read_text())
    (lab.box / "salvor.json").write_text(json.dumps(marker | {"read_back": 1}))
    (content,) = (one for one in system.verify(way, HOUR) if one.check == "content")
    assert (content.level, content.detail) == (Level.FAIL, "restic read 1 file back")
    (lab.box / "salvor.json").unlink()
    assert [one.complete for one in system.observe().staged] == [False]
    assert judged(system.verify(way, HOUR)) == {"staged": Level.FAIL}
    with pytest.raises(CannotError, match="no whole stage"):
        promote(system, way)
    assert way.arguments
    act(system, "stage", **way.arguments)
    assert Level.FAIL not in judged(system.verify(way, HOUR)).values()
    for path in (lab.box / "staged", *(lab.box / "staged").rglob("*")):
        whole = path.lstat().st_mtime_ns // 10**9 * 10**9
        os.utime(path, ns=(whole, whole), follow_symlinks=False)
    found = judged(system.verify(way, HOUR))
    assert found["as it was backed up"] is Level.FAIL, "this disk keeps more than seconds"


def test_what_cannot_be_flushed_is_no_whole_stage(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    sync = lab.root / "programs" / "sync"
    sync.parent.mkdir()
    sync.write_text(f'#!/bin/sh\n[ "$1" != -f ] || exit 1\nexec {shutil.which("sync")} "$@"\n')
    sync.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{sync.parent}:{os.environ['PATH']}")
        with pytest.raises(CommandError):
            staged(system)
        assert not any(one.complete for one in system.observe().staged)
    staged(system)
    assert [one.complete for one in system.observe().staged] == [True]


def test_a_tree_without_backups_has_no_way_back(lab: Lab) -> None:
    assert (way_of(lab.open()).possible, way_of(lab.open()).why) == (
        False,
        f"no repository has a snapshot of {lab.tree}",
    )
    assert "names no repositories" in way_of(Lab(lab.root).open()).why


# ------------------------------------------------------------------------------------------ proof


def test_a_stage_that_is_not_what_was_backed_up_is_found_out(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way, tree = staged(system), lab.box / "staged"
    was = (tree / "plain").stat()
    (tree / "plain").write_bytes(b"HELLO" * 1000)
    os.utime(tree / "plain", ns=(was.st_atime_ns, was.st_mtime_ns))
    (tree / "empty").chmod(0o600)
    os.utime(tree / "setuid", ns=(1, 1))
    (tree / "--").rename(tree / "---")
    was = (tree / "up").lstat()
    (tree / "up").unlink()
    (tree / "up").symlink_to("../../etc")
    os.utime(tree / "up", ns=(1, was.st_mtime_ns), follow_symlinks=False)
    shutil.copy2(tree / "hard", tree / "copy")
    (tree / "copy").replace(tree / "hard")
    found = {one.check: one for one in system.verify(way, HOUR)}
    assert {check for check, one in found.items() if one.level is Level.FAIL} == set(found) - {"freshness"}
    assert found["content"].detail.startswith("touched since")
    for wrong in ("empty (mode)", "setuid (time)", "--- (not in the backup)", "-- (missing)"):
        assert wrong in found["as it was backed up"].detail
    assert "up -> ../../etc" in found["where links lead"].detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_owner_is_found_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    way = staged(system)
    os.chown(lab.box / "staged" / "empty", 4321, -1)
    assert judged(system.verify(way, HOUR))["as it was backed up"] is Level.FAIL
    (lab.root / "id").write_text("#!/bin/sh\necho 1000\n")
    (lab.root / "id").chmod(0o755)
    monkeypatch.setenv("PATH", f"{lab.root}:{os.environ['PATH']}")
    (found,) = (one for one in system.verify(way, HOUR) if one.check == "as it was backed up")
    assert (found.level, found.detail) == (Level.WARN, "1 have another owner: only root can give files to others")


def test_a_link_that_restic_spoils_is_told(lab: Lab) -> None:
    (lab.tree / "foreign").symlink_to(os.fsdecode(b"/nowhere/\xff"))
    system = lab.open()
    act(system, "backup", kind="snapshot")
    (found,) = (one for one in system.verify(staged(system), HOUR) if one.check == "where links lead")
    is_spoilt = os.fsencode((lab.box / "staged/foreign").readlink()) != b"/nowhere/\xff"  # before restic 0.16
    assert not is_spoilt or (found.level is Level.WARN and "foreign" in found.detail)
    assert found.level is not Level.FAIL


_TOLD = """#!/bin/sh
said=
for word; do case $word in snapshots|restore|ls|--long|stats) said="$said$word " ;; esac; done
printf '%s%s\\n' "$said" "${GOGC:-} ${GOMEMLIMIT:-}" >> "$LOG"
exec "$RESTIC" "$@"
"""


def test_restic_is_started_once_for_each_thing_that_it_is_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    system, programs, log = lab.open(), lab.root / "bin", lab.root / "log"
    act(system, "backup", kind="snapshot")
    programs.mkdir()
    (programs / "restic").write_text(_TOLD)
    (programs / "restic").chmod(0o755)
    real = shutil.which("restic")
    assert real
    for name, value in (("RESTIC", real), ("LOG", str(log)), ("PATH", f"{programs}:{os.environ['PATH']}")):
        monkeypatch.setenv(name, value)

    def asked() -> list[str]:
        said = [line.split(" ") for line in log.read_text().splitlines()]
        log.unlink()
        return sorted(" ".join(words[:-2]) for words in said if words[:-2])

    way = staged(system)
    act(system, "stage", **dict(way.arguments or {}))
    said = log.read_text()
    if system.repositories[0].version >= (0, 14):
        assert re.search(r"^restore 400 \d+KiB$", said, re.MULTILINE)  # less of its time goes into collecting garbage
        assert re.search(r"^ls 400 \d+KiB$", said, re.MULTILINE)
    assert Level.FAIL not in judged(system.verify(way, HOUR)).values()
    assert system.ask("changed", "side-tree") == 0
    assert asked() == ["ls", "ls --long", "restore", "snapshots", "stats"]
    act(system, "drop", stage="side-tree")
    monkeypatch.setattr(snapshot, "_BELIEVED", 0.0)  # what was named a while ago may be gone
    staged(system)
    assert asked() == ["restore", "snapshots", "snapshots"]


# ------------------------------------------------------------------------------------------ questions


def test_questions_are_answered_of_what_is_live_and_of_what_is_staged(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    staged(system)
    every = system.ask("files", "live")
    assert every == sum(1 for path in lab.tree.rglob("*") if path.is_file() and not path.is_symlink())
    assert system.ask("files", "side-tree") == every
    assert system.ask("files *.jpg", "live") == 1
    assert system.ask("files --", "live") == 1
    assert system.ask("changed", "live") == system.ask("changed", "side-tree") == 0
    for path in lab.tree.rglob("*"):
        if path.is_file() and not path.is_symlink():  # as an archive brings them back
            os.utime(path, (0, int(path.stat().st_mtime)))
    assert system.ask("changed", "live") == 0
    (lab.tree / "empty").unlink()
    (lab.tree / "owned").write_bytes(b"encrypted")
    assert system.ask("changed", "live") == 2
    assert system.ask("bytes", "live") == system.ask("bytes", "side-tree") + len(b"encrypted") - 1
    shutil.rmtree(lab.tree)
    assert system.ask("changed", "live") == every
    with pytest.raises(CannotError, match="is not there"):
        system.ask("files", "live")


def test_that_there_is_nothing_to_compare_with_says_nothing_of_the_tree(lab: Lab) -> None:
    system, check = lab.open(), Check(name="nothing was lost", system="media", ask="changed", at_most=0)
    found = [run(check, ask=system.ask, where="live")]
    act(system, "backup", kind="snapshot")
    found.append(run(check, ask=system.ask, where="live"))
    (lab.root / "local").rename(lab.root / "unplugged")
    found.append(run(check, ask=system.ask, where="live"))
    assert [one.level for one in found] == [Level.UNKNOWN, Level.PASS, Level.UNKNOWN]
    assert "no snapshot to compare with" in found[0].detail and "nothing to read" in found[2].detail


def test_a_tree_that_could_not_all_be_read_has_no_figure(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    find = lab.root / "programs" / "find"
    find.parent.mkdir()
    find.write_text(f'#!/bin/sh\n{shutil.which("find")} "$@"\necho "find: Input/output error" >&2\nexit 1\n')
    find.chmod(0o755)
    monkeypatch.setenv("PATH", f"{find.parent}:{os.environ['PATH']}")
    for question in ("files", "bytes"):
        with pytest.raises(CannotError, match="could not all be read: find: Input/output error"):
            lab.open().ask(question, "live")


def test_only_what_an_incident_has_there_counts(lab: Lab) -> None:
    for name in ("media.salvor-20200101T000000Z-shop-0000", "media.salvor-of somebody"):
        (lab.root / name / "kept").mkdir(parents=True)
        (lab.root / name / "salvor.json").write_text(json.dumps({"tree": lab.open().observe().identity}))
    (lab.tree.parent / "media.salvor-20200101T000000Z-shop-0000").symlink_to(
        lab.root / "media.salvor-20200101T000000Z-shop-0000"
    )
    (lab.root / "media.salvor-of somebody").rename(lab.tree.parent / "media.salvor-of somebody")
    state = lab.open().observe()
    assert (state.origin, state.kept) == (None, ())


def test_lines_of_a_single_file_are_counted(lab: Lab) -> None:
    path = lab.root / "srv" / ".env"
    path.write_text("A=1\nB=2\n# C=3\n")
    system = lab.open(path)
    assert system.ask("lines ^[A-Z]+=", "live") == 2
    assert system.ask("lines -x", "live") == 0


@pytest.mark.parametrize("question", ["", "select 1", "lines", "bytes /etc", "changed today"])
def test_what_is_no_question_is_refused(question: str) -> None:
    with pytest.raises(UsageError, match="cannot be asked of a tree"):
        Files.check_question(question)


def test_changed_does_not_count_what_an_incident_brought_back_against_the_damage(lab: Lab) -> None:
    system = lab.open()
    act(system, "backup", kind="snapshot")
    (lab.tree / "plain").write_bytes(b"encrypted by somebody")
    act(system, "backup", kind="snapshot")
    good = system.backups()[-1]
    way = staged(system, Wish(source=good.id))
    assert system.ask("changed", "side-tree") == 0
    promote(system, way)
    assert system.ask("changed", "live") == 0
