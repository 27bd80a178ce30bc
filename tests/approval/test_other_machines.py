"""An approval from another machine, through the mirror that both share."""

from __future__ import annotations

import boto3
import pytest
from moto import mock_aws
from salvor.approval import paper, places, waiting
from salvor.approval.settings import SecondPerson
from salvor.approval.waiting import Gate
from salvor.errors import CannotError, HeldError
from salvor.journal import Journal

from tests import trouble
from tests.approval.second_person import (
    SECOND,
    approve,
    folder_of_approvals,
    lines,
    restoring,
    the_incident,
    waits,
)
from tests.journal.test_lease import Machine
from tests.waiting import until
from tests.world import BAD, GOOD, World


def test_from_another_machine_through_the_mirror(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    there = Machine(place, "there")
    with restoring(place) as command:
        assert until(waits(place))
        asked = lines(place, "asked")[0]["hash"]
        done = there.inv("incident.approve", f"--incident={the_incident(place)}", f"--hash={asked}")
        assert done.returncode == 0, done.stderr
        assert "store: promote" in done.stdout
        command.result(20)
    assert place.live == GOOD
    assert [line["who"] for line in lines(place, "confirmed")] == ["kim@there"]
    assert len(list(folder_of_approvals(place).iterdir())) == 1, "it is kept as evidence"
    assert not list(there.incidents.glob("*")), "that machine writes nothing of its own"


def test_given_before_a_takeover_it_still_counts_and_is_not_asked_for_again(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    trouble.order(place.root, "store", "stage", "fail")
    with restoring(place) as command:
        approve(place)
        with pytest.raises(CannotError, match="does not want to"):
            command.result(20)
    there = Machine(place, "there")
    assert there.inv("incident.take", f"--incident={the_incident(place)}").returncode == 0
    done = there.restore(f"--incident={the_incident(place)}")
    assert done.returncode == 0 and "waits for a second person" not in done.stdout, done.stdout + done.stderr
    assert place.live == GOOD
    (journal,) = map(Journal.read, there.journals())
    assert len(journal.of("asked")) == 1
    assert [line["who"] for line in journal.of("confirmed")] == [SECOND]
    assert len(list((journal.folder / places.FOLDER).iterdir())) == 1, "it is kept as evidence there too"


def test_who_waits_is_told_at_once_that_another_machine_took_over(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    monkeypatch.setattr(waiting, "_FAR_BETWEEN", 0.3)
    with restoring(place) as command:
        assert until(waits(place))
        taken = Machine(place, "there").inv("incident.take", f"--incident={the_incident(place)}")
        assert taken.returncode == 0, taken.stderr
        with pytest.raises(HeldError, match="kim@there"):
            command.result(5)
    assert place.live == BAD


def test_through_a_bucket(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    incident, keys, said = "20261121T003300Z-things-3f2a", ["0" * 16], list[str]()
    (place.root / "incidents" / incident).mkdir()
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="mirror")
        monkeypatch.setenv("SALVOR_MIRROR", "s3://mirror/journals")
        there = places.mirrored(incident)
        assert there
        there.store.create(*paper.write(incident, keys, SECOND, None))
        there.store.create(f"{'0' * 12}-{'0' * 16}.json", b"x" * (paper.MOST_BYTES + 1))
        gate = Gate(
            place.root / "incidents" / incident,
            "tester@here",
            SecondPerson(steps=("reroute",)),
            plans=lambda: [paper.hash_of(keys)],
            tell=said.append,
            note=lambda kind, **data: None,
            still_ours=lambda: None,
        )
        assert gate.wait("reroute", paper.hash_of(keys), keys).who == SECOND
    assert "does not count: it has more than" in said[0]


def test_a_mirror_that_is_gone_holds_no_approval_up(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "nowhere"))
    with restoring(place) as command:
        assert until(waits(place))
        approve(place)
        said = command.result(20)
    assert place.live == GOOD
    assert "Whether there are approvals in" in said
