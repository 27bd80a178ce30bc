"""Which approvals count: whose, of what, and signed by whom. All else is refused, written down, and holds nobody up."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from salvor import console
from salvor.approval import giving, paper, places
from salvor.errors import CannotError, PlanMovedError, UsageError
from salvor.journal import FILE
from salvor.session import aftermath
from salvor.show import Json, Plain

from tests import trouble
from tests.approval.second_person import (
    SECOND,
    approve,
    folder_of_approvals,
    keys_of_the_plan,
    lines,
    restoring,
    the_incident,
    waits,
)
from tests.waiting import until
from tests.world import BAD, GOOD, World


@pytest.mark.parametrize("name", ["tester@here", "Tester@HERE", " tester @here", "\uff54ester@here"])
def test_the_one_who_acts_is_no_second_person(place: World, name: str) -> None:
    with restoring(place) as command:
        with pytest.raises(CannotError, match="no second person"):
            approve(place, name)
        name_of_file, content = paper.write(the_incident(place), keys_of_the_plan(place), name, None)
        places.here(place.journals()[0].folder).store.create(name_of_file, content)
        assert until(lambda: lines(place, "refused"))
        assert "acts here, and is no second person" in lines(place, "refused")[0]["why"]
        assert place.live == BAD
        approve(place)
        command.result(20)
    assert [line["who"] for line in lines(place, "confirmed")] == [SECOND]


def test_who_approved_cannot_act_on_that(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people each need the other: the one who goes on may not be the one who approved."""
    trouble.order(place.root, "store", "stage", "fail")
    with restoring(place) as command:
        approve(place)
        with pytest.raises(CannotError, match="does not want to"):
            command.result(20)
    monkeypatch.setenv("SALVOR_OPERATOR", SECOND)
    with restoring(place) as command:
        assert until(lambda: len(lines(place, "asked")) == 2)
        assert until(waits(place))
        assert place.live == BAD
        approve(place, "tester@here")
        command.result(20)
    assert place.live == GOOD
    assert [line["who"] for line in lines(place, "confirmed")][-1] == "tester@here"


def test_only_who_may_approve_counts(place: World) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("within: 20s}", "within: 20s, people: [commander@desk]}"))
    with restoring(place) as command:
        approve(place)
        assert until(lambda: lines(place, "refused"))
        assert place.live == BAD
        approve(place, "commander@desk")
        command.result(20)
    assert [line["who"] for line in lines(place, "confirmed")] == ["commander@desk"]


def test_a_moved_plan_needs_a_new_approval(place: World) -> None:
    trouble.order(place.root, "store", "stage", "fail")
    with restoring(place) as command:
        approve(place)
        with pytest.raises(CannotError, match="does not want to"):
            command.result(20)
    (place.root / "sign").write_text("10.0.0.9")
    with restoring(place) as command:
        assert until(lambda: len(lines(place, "asked")) == 2)
        assert until(waits(place))
        time.sleep(0.3)
        assert place.live == BAD
        first, second = lines(place, "asked")
        assert first["hash"] != second["hash"]
        approve(place)
        command.result(20)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")


def test_what_is_left_of_an_approved_plan_is_approved(place: World) -> None:
    trouble.order(place.root, "sign", "point", "fail")
    with restoring(place) as command:
        approve(place)
        with pytest.raises(CannotError, match="does not want to"):
            command.result(20)
    assert (place.live, place.sign) == (GOOD, "10.0.0.1")
    with restoring(place) as command:
        command.result(20)
    assert place.sign == "127.0.0.1" and len(lines(place, "asked")) == 1


def test_another_hash_is_refused_and_so_is_what_nobody_asked_for(place: World) -> None:
    with pytest.raises(UsageError, match="there is no incident"):
        giving.approve("20261121T003300Z-things-3f2a", "", "", Plain())
    with restoring(place) as command:
        assert until(lambda: lines(place, "asked"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SALVOR_OPERATOR", SECOND)
            with pytest.raises(PlanMovedError, match="is not the plan that waits"):
                giving.approve(the_incident(place), "0" * 12, "", Plain())
            with pytest.raises(CannotError, match="nobody is at the terminal"):
                giving.approve(the_incident(place), "", "", Json(io.StringIO()))
        assert not folder_of_approvals(place).exists()
        approve(place)
        command.result(20)
    with pytest.raises(UsageError, match="waits for a second person"):
        approve(place)


def test_what_is_approved_is_what_was_asked_for_and_reaches_who_waits(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("within: 20s", f"signers: {place.root}/signers, within: 1s"))
    (place.root / ".ssh").mkdir()
    key(place, ".ssh/id_ed25519")
    with pytest.raises(CannotError, match="nobody else approved"):
        console.recover(place.session(), Plain(), yes=True)
    journal, folder = place.journals()[0].folder / FILE, folder_of_approvals(place)
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(keys_of_the_plan(place)[0].encode(), b"0" * 16))
    with pytest.raises(CannotError, match="is not what its hash says"):
        approve(place)
    journal.write_bytes(whole)
    folder.write_text("a file, where a folder should be")
    with pytest.raises(CannotError, match="cannot be handed over"):
        approve(place)
    folder.unlink()
    (place.root / "mirror").mkdir()  # which holds less than the journal here
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    approve(place)
    (approval,) = folder.iterdir()
    assert json.loads(approval.read_text())["signature"], "where it must be signed, with the key that one has"
    monkeypatch.delenv("SALVOR_MIRROR")
    aftermath.undo(the_incident(place), Plain(), yes=True)
    with pytest.raises(UsageError, match="waits for a second person"):
        approve(place)


def test_hostile_files_do_not_count_and_hold_nobody_up(place: World) -> None:
    with restoring(place) as command:
        assert until(lambda: lines(place, "asked"))
        incident, keys = the_incident(place), keys_of_the_plan(place)
        folder = folder_of_approvals(place)
        folder.mkdir()

        def name(number: int) -> str:
            return f"{paper.hash_of(keys)}-{number:016x}.json"

        (folder / name(1)).symlink_to("/dev/zero")
        os.mkfifo(folder / name(2))
        (folder / name(3)).mkdir()
        (folder / name(4)).write_bytes(b"x" * (paper.MOST_BYTES + 1))
        (folder / name(5)).write_bytes(b"[" * 100_000)
        (folder / name(6)).write_text("")
        (folder / "not-an-approval").write_text("ignored")
        good_name, good = paper.write(incident, keys, "mallory@there", None)
        (folder / name(7)).write_bytes(good)  # under another name
        (folder / good_name).write_bytes(good.replace(b"mallory@there", b"somebody@else"))
        for other in (
            paper.write("20261121T003300Z-things-3f2a", keys, SECOND, None),
            paper.write(incident, keys[:-1], SECOND, None),
            paper.write(incident, ["0" * 16], SECOND, None),
        ):
            (folder / other[0]).write_bytes(other[1])
        said = json.loads(json.loads(paper.write(incident, keys, SECOND, None)[1])["approval"])
        for edit in ({"changes": [*keys, "0" * 16]}, {"where": "\x1b[2Jthere"}, {"at": "yesterday"}):
            edited = (json.dumps({"approval": json.dumps(said | edit), "signature": ""}) + "\n").encode()
            (folder / paper._name(said["hash"], edited)).write_bytes(edited)
        assert until(waits(place))
        assert until(lambda: len(lines(place, "refused")) == 12)
        why = [line["why"] for line in lines(place, "refused")]
        assert f"it has more than {paper.MOST_BYTES} bytes" in why, "too much is not even read"
        time.sleep(0.6)
        assert place.live == BAD
        begun = time.monotonic()
        approve(place)
        command.result(20)
        assert time.monotonic() - begun < 5
    assert [line["who"] for line in lines(place, "confirmed")] == [SECOND]


def test_an_approval_is_whole_or_not_there(place: World) -> None:
    name, content = paper.write("20261121T003300Z-things-3f2a", ["0" * 16], SECOND, None)
    for size in range(0, len(content), 7):
        with pytest.raises(paper.NotApprovedError):
            paper.check(name, content[:size], "20261121T003300Z-things-3f2a", None)
    assert paper.check(name, content, "20261121T003300Z-things-3f2a", None).who == SECOND


def key(place: World, name: str) -> Path:
    path = place.root / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=20)
    return path


def test_where_signers_are_named_only_their_signature_counts(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lee, mallory, mine = key(place, "lee"), key(place, "mallory"), key(place, "mine")
    signers = place.root / "signers"
    signers.write_text(
        f'lee@example.com namespaces="salvor-approval" {lee.with_suffix(".pub").read_text()}'
        f'tess@example.com namespaces="salvor-approval" {mine.with_suffix(".pub").read_text()}'
        f'mallory@example.com namespaces="git" {mallory.with_suffix(".pub").read_text()}'
    )
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("within: 20s}", f"within: 20s, signers: {signers}}}"))
    monkeypatch.setenv("SALVOR_SIGNING_KEY", str(mine))
    with restoring(place) as command:
        assert until(lambda: lines(place, "asked"))
        incident, keys = the_incident(place), keys_of_the_plan(place)
        here = places.here(place.journals()[0].folder).store
        here.create(*paper.write(incident, keys, SECOND, None))
        assert until(lambda: len(lines(place, "refused")) == 1)
        approve(place, key=str(mallory))
        assert until(lambda: len(lines(place, "refused")) == 2)
        approve(place, key=str(mine))
        assert until(lambda: len(lines(place, "refused")) == 3)
        _, content = paper.write(incident, keys, "somebody@else", lee)
        stolen = json.loads(content)["signature"]  # of another text
        text = json.loads(paper.write(incident, keys, SECOND, None)[1])["approval"]
        forged = (json.dumps({"approval": text, "signature": stolen}) + "\n").encode()
        here.create(paper._name(paper.hash_of(keys), forged), forged)
        assert until(lambda: len(lines(place, "refused")) == 4)
        assert place.live == BAD
        approve(place, key=str(lee))
        command.result(20)
    why = [line["why"] for line in lines(place, "refused")]
    assert "is not signed" in why[0] and "signature does not count" in why[1]
    assert "key of the one who acts here" in why[2] and "signature does not count" in why[3]
    [confirmed] = lines(place, "confirmed")
    assert confirmed["who"] == "lee@example.com" and confirmed["key"].startswith("SHA256:")
    # as docs/approvals.md says, by hand
    kept = json.loads((folder_of_approvals(place) / confirmed["approval"]).read_text())
    (place.root / "signature").write_text(kept["signature"])
    argv = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "lee@example.com", "-n", "salvor-approval"]
    subprocess.run(
        [*argv, "-s", str(place.root / "signature")], input=kept["approval"], text=True, check=True, timeout=20
    )
