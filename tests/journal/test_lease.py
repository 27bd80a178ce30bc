"""Two machines that share a journal's mirror: two folders of incidents, and one world that both reach."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from salvor import console
from salvor.change import Change, Level
from salvor.errors import HeldError, PlanMovedError, UsageError
from salvor.journal import FILE, Journal, evidence, incidents, mirror_store, story, system_lock
from salvor.journal import lease as module
from salvor.journal.folders import writing
from salvor.journal.lease import Lease
from salvor.journal.mirror import ASIDE
from salvor.session import takeover
from salvor.session.handover import of, screen
from salvor.show import Plain

from tests import world
from tests.world import BAD, GOOD, World

ROOT = Path(__file__).parents[2]
INCIDENT = "20261121T003300Z-things-3f2a"


class Machine:
    """One machine: its folder of incidents, and who sits there."""

    def __init__(self, place: World, name: str) -> None:
        self.place, self.name = place, name
        self.incidents = place.root / f"incidents-{name}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **world.environment(self.place.root),
            "SALVOR_INCIDENTS": str(self.incidents),
            "SALVOR_OPERATOR": f"kim@{self.name}",
            "SALVOR_MIRROR": str(self.place.root / "mirror"),
        }

    def inv(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "invoke", *arguments],
            env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT / "tests/processes")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def restore(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.inv("restore", "--service=things", "--platform=world", "--yes", *arguments)

    def journals(self) -> list[Path]:
        return list(incidents(self.incidents))


@pytest.fixture
def place(tmp_path: Path, kinds_of_tests: None) -> World:
    made = world.make(tmp_path)
    (tmp_path / "mirror").mkdir()
    made.damage()
    return made


@pytest.fixture
def here(place: World, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine of this process."""
    machine = Machine(place, "here")
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    return machine


@pytest.fixture
def there(place: World) -> Machine:
    return Machine(place, "there")


def test_who_comes_second_is_told_and_may_take_over(place: World, here: Machine, there: Machine) -> None:
    session = place.session()
    plan = session.plan()
    with pytest.raises(HeldError) as stopped, session.begin():
        session.approve(plan, "a test")
        session.act("assess")
        refused = there.restore()
        taken = there.inv("incident.take", f"--incident={session.incident.id}", "--reason=kim sleeps")
        session.act("isolate")
    assert refused.returncode == 7
    assert f"kim@here (process {os.getpid()} on " in refused.stderr
    assert f"inv incident.take --incident={session.incident.id}" in refused.stderr
    assert taken.returncode == 0, taken.stderr
    assert "kim@there" in stopped.value.what
    assert [line["reason"] for line in Journal.read(there.journals()[0]).of("taken")] == ["kim sleeps"]
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    assert not place.letters or set(place.letters) == {"declared"}

    went_on = there.restore()
    assert went_on.returncode == 0, went_on.stderr
    assert (place.live, place.sign, place.letters, place.kept) == (GOOD, "127.0.0.1", ["declared", "recovered"], [BAD])
    (journal,) = there.journals()
    assert journal.name == session.incident.id
    found = evidence.check(journal, mirror=there.environment["SALVOR_MIRROR"])
    assert not [finding for finding in found if finding.level is Level.FAIL]


def test_who_was_taken_over_amid_a_change_brings_it_to_its_end_and_says_no_more(
    place: World, here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, mirror = place.session(), here.environment["SALVOR_MIRROR"]

    class TakenOver(Plain):
        def begun(self, change: Change) -> None:
            super().begun(change)
            if change.verb == "stage":
                assert there.inv("incident.take", f"--incident={session.incident.id}").returncode == 0

    session.runner.watcher = TakenOver()
    with pytest.raises(HeldError, match="kim@there"):
        console.recover(session, Plain(), yes=True)
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    assert "failed" not in place.letters
    (ours,), (theirs,) = here.journals(), there.journals()
    assert Journal.read(ours).of("owed") == [], "nor will it"
    assert (theirs / FILE).read_bytes().startswith((ours / FILE).read_bytes()), "the journal is theirs"
    (aside,) = map(json.loads, (ours / ASIDE).read_text().splitlines())
    assert (aside["kind"], aside["step"], aside["outcome"]) == ("outcome", "restore", "done")
    assert [each.level for each in evidence.check(theirs, mirror=mirror)] == [Level.PASS, Level.PASS]
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    assert [each.level for each in evidence.check(ours, mirror=mirror)] == [Level.PASS, Level.UNKNOWN]
    with writing(ours, print) as journal:
        journal.append("note", text="read by kim")
    assert [each.level for each in evidence.check(ours, mirror=mirror)] == [Level.PASS, Level.PASS]


def test_what_another_machine_ended_is_not_begun_again(place: World, here: Machine, there: Machine) -> None:
    session = place.session()
    with session.begin():
        session.act("assess")
    stale = place.session()
    assert stale.incident.id == session.incident.id
    there.inv("incident.take", f"--incident={session.incident.id}")
    at, this = here.environment["SALVOR_MIRROR"], session.incident.id
    elsewhere = Lease(at, "world.things", by="kim@there", incident=this, folder=there.incidents, tell=print)
    elsewhere.claim()
    shown = "\n".join(screen(of(story.read(session.incident.folder), here.incidents)))
    assert "kim@there works on it since" in shown and f"take over   inv incident.take --incident={this}" in shown
    elsewhere.release()
    assert there.inv("undo", f"--incident={session.incident.id}", "--yes").returncode == 0
    with pytest.raises(PlanMovedError, match="undone"), stale.begin():
        pass
    assert place.live == BAD


def test_the_first_machine_finds_what_the_other_did(place: World, here: Machine, there: Machine) -> None:
    session = place.session()
    with session.begin():
        session.act("assess")
    (ours,) = here.journals()
    there.inv("incident.take", f"--incident={session.incident.id}")
    assert there.restore(f"--incident={session.incident.id}").returncode == 0
    (theirs,) = there.journals()
    again = here.restore(f"--incident={session.incident.id}")
    assert again.returncode == 0, again.stderr
    assert (ours / FILE).read_bytes().startswith((theirs / FILE).read_bytes())
    taken = here.inv("incident.take", f"--incident={session.incident.id}")
    assert f"HINT: inv incident.show --incident={session.incident.id}" in taken.stdout, "there is nothing to restore"
    assert place.letters == ["declared", "recovered"]


def test_what_another_machine_brought_back_meanwhile_is_left_as_it_is(
    place: World, here: Machine, there: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = place.session()
    plan = session.plan()
    with monkeypatch.context() as colleague:
        for name, value in there.environment.items():
            colleague.setenv(name, value)
        console.recover(place.session(), Plain(), yes=True)
    console.carry_out(session, Plain(), plan, "a test")
    assert (place.live, place.letters, place.kept) == (GOOD, ["declared", "recovered"], [BAD])
    assert "Nothing is broken in things any more: nothing was done." in capsys.readouterr().out
    assert place.session().incident.id != session.incident.id, "the next one is another incident"


def test_what_one_machine_told_the_other_does_not_tell_again(place: World, here: Machine, there: Machine) -> None:
    session = place.session()
    plan = session.plan()
    with session.begin():
        session.approve(plan, "a test")
        session.act("assess")
        session.act("notify")
        session.runner.finish()
    assert place.letters == ["declared"]
    (place.root / "post" / "letters").unlink()  # an outbox keeps what it sent on its own machine
    assert there.inv("incident.take", f"--incident={session.incident.id}").returncode == 0
    assert there.restore().returncode == 0
    assert place.letters == ["recovered"]


def test_what_a_crash_left_is_no_hindrance_here_and_one_elsewhere(place: World, here: Machine, there: Machine) -> None:
    child = os.fork()
    if child == 0:
        with place.session().begin():
            os._exit(9)
    os.waitpid(child, 0)
    assert there.restore().returncode == 7
    assert here.restore().returncode == 0
    assert place.live == GOOD


def test_other_services_are_not_held(place: World, here: Machine) -> None:
    location = here.environment["SALVOR_MIRROR"]
    for service in ("world.things", "world.others", "another.things"):
        assert claim(location, service, "here") == {}


def test_a_mirror_that_is_gone_holds_nobody_up(place: World, here: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "mirror").rmdir()
    console.recover(place.session(), Plain(), yes=True)
    assert (place.live, place.letters) == (GOOD, ["declared", "recovered"])
    said = "".join(capsys.readouterr())
    assert said.count("does not say who else works on world.things") == 1


@pytest.mark.parametrize("trouble", ["it was emptied", "no address"])
def test_a_mirror_that_is_no_mirror_any_more_holds_nobody_up(
    place: World, here: Machine, trouble: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NotMounted(Plain):
        def begun(self, change: Change) -> None:
            super().begun(change)
            if change.verb == "stage":
                shutil.rmtree(place.root / "mirror" / ".leases")

    if trouble == "no address":
        monkeypatch.setenv("SALVOR_MIRROR", "s3://mirror/journals")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    session = place.session()
    session.runner.watcher = NotMounted() if trouble == "it was emptied" else Plain()
    console.recover(session, Plain(), yes=True)
    assert (place.live, place.letters) == (GOOD, ["declared", "recovered"])
    assert "does not say who else works on world.things" in "".join(capsys.readouterr())


def test_a_mirror_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("salvor.journal.lease._DEADLINE", 0.5)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        held = lease("s3://mirror/journals", "world.things", "here", said.append)
        for _ in range(20):
            held.check()
        held.release()
        assert time.monotonic() - begun < 5
        assert len(said) == 1

        monkeypatch.setattr("salvor.journal.lease._DEADLINE", 5.0)  # a busy machine may take long for the claim
        held = lease(str(tmp_path), "world.things", "here", said.append)
        held.check()
        monkeypatch.setattr("salvor.journal.lease._DEADLINE", 0.5)
        held._store = module._store("s3://mirror/journals", "world.things")  # from now on it hangs
        begun = time.monotonic()
        for _ in range(20):
            held.check()
        held.release()
    assert time.monotonic() - begun < 5
    assert "does not say who else works" in said[1] and "still says that kim@here works" in said[2]
    assert len(said) == 3


def test_taking_over_needs_a_mirror_that_has_the_incident(
    place: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="has no incident"):
        takeover.take(INCIDENT, print)
    with pytest.raises(UsageError, match="is no incident's id"):
        takeover.take("../x", print)
    monkeypatch.delenv("SALVOR_MIRROR")
    with pytest.raises(UsageError, match="SALVOR_MIRROR is not set"):
        takeover.take(INCIDENT, print)


# ------------------------------------------------------------------------------------------- the lease alone


def lease(location: str, service: str, machine: str, tell: Callable[[str], None] = print, **more: str) -> Lease:
    folder = Path("/incidents") / machine
    return Lease(location, service, by=f"kim@{machine}", incident=INCIDENT, folder=folder, tell=tell, **more)


def claim(location: str, service: str, machine: str) -> dict[str, object] | None:
    """Who held it before; None when it is held."""
    try:
        return lease(location, service, machine).claim()
    except HeldError:
        return None


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        boto3.client("s3").create_bucket(
            Bucket="mirror", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        yield "s3://mirror/journals"


@pytest.fixture(params=["folder", "bucket"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a bucket of an emulation of S3 (moto)."""
    return str(request.getfixturevalue("bucket")) if request.param == "bucket" else str(tmp_path)


def test_it_goes_from_one_to_the_next(location: str) -> None:
    first = lease(location, "world.things", "one")
    first.check()
    assert claim(location, "world.things", "two") is None
    first.check()
    first.release()
    first.check()  # as of a line of the journal that comes last: it is not claimed again
    second = lease(location, "world.things", "two")
    assert second.holder() is None and second.claim() == {}
    assert lease(location, "world.things", "three").claim(take=True)["by"] == "kim@two"
    with pytest.raises(HeldError, match=r"kim@three .* took world.things over"):
        second.check()
    second.release()
    assert claim(location, "world.things", "four") is None


def test_who_was_taken_over_stays_so_whatever_the_mirror_says_then(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    first = lease(str(mirror), "world.things", "one")
    first.check()
    lease(str(mirror), "world.things", "two").claim(take=True)
    for since in (0.0, 60.0):  # before a change, and before a line of the journal right after it
        with pytest.raises(HeldError, match=r"kim@two .* took world.things over"):
            first.check(since=since)
    mirror.rename(tmp_path / "away")
    with pytest.raises(HeldError, match=r"kim@two .* took world.things over"):
        first.check()


def test_a_mirror_that_falls_silent_again_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    mirror, away = tmp_path / "mirror", tmp_path / "away"
    mirror.mkdir()
    said: list[str] = []
    held = lease(str(mirror), "world.things", "one", said.append)
    held.check()
    for _ in range(2):
        mirror.rename(away)
        held.check()
        held.check()
        away.rename(mirror)
        held.check()
    assert len(said) == 2 and all("does not say who else works" in text for text in said)


def test_another_machine_of_that_name_and_folder_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("6ad2fd1b6cf64ef0b9b6d7c9d9a3b0c1\n")
    theirs.write_text("0f3ab9d6c1c84f0e8f0d7e1a5b2c3d4e\n")
    for machine, known in ((theirs, ours), (tmp_path / "none", ours)):
        monkeypatch.setattr(module, "_MACHINE_ID", known)
        lease(str(tmp_path), f"world.{machine.name}", "one").claim()
        assert claim(str(tmp_path), f"world.{machine.name}", "one") is not None, "what a crash left is no hindrance"
        monkeypatch.setattr(module, "_MACHINE_ID", machine)
        with pytest.raises(HeldError, match=r"kim@one .* works on"):
            lease(str(tmp_path), f"world.{machine.name}", "one").claim()


def test_what_is_held_with_a_service_goes_with_it(location: str) -> None:
    first = lease(location, "world.things", "one")
    assert first.with_it("shop of world", "") is None, "it is not held itself"
    first.check()
    shop = first.with_it("shop of world", "wait for {incident}")
    assert shop and shop.claim() == {}
    with pytest.raises(HeldError, match=r"kim@one .* works on shop of world now") as held:
        lease(location, "shop of world", "two", hint="wait for {incident}").claim()
    assert held.value.hint == f"wait for {INCIDENT}"
    other = lease(location, "shop of world", "two")
    assert other.holder() is not None
    assert lease(location, "shop of world", "one").holder() is None, "who asks is no other"
    first.release()
    assert other.holder() is None and claim(location, "shop of world", "two") is not None
    again = lease(location, "world.things", "one")
    again.check()
    shop = again.with_it("shop of world", "")
    assert shop
    shop.claim(take=True)
    lease(location, "world.things", "two").claim(take=True)
    assert claim(location, "shop of world", "three") is not None


@pytest.mark.parametrize("went_on", ["the same incident in another process", "another incident in that process"])
def test_what_a_crash_left_held_with_a_service_is_over_when_that_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, went_on: str
) -> None:
    first = lease(str(tmp_path), "world.things", "one")
    first.check()
    shop = first.with_it("shop of world", "")
    assert shop and shop.claim() == {}
    incident = INCIDENT
    if went_on.startswith("the same"):
        monkeypatch.setattr(os, "getpid", lambda: 1)
    else:
        incident = f"{INCIDENT}0"
    Lease(str(tmp_path), "world.things", by="kim@one", incident=incident, folder=first.folder, tell=print).check()
    assert claim(str(tmp_path), "shop of world", "two") is not None


def test_whoever_is_left_of_a_process_holds_a_system_on(tmp_path: Path) -> None:
    def hold(service: Lease) -> AbstractContextManager[None]:
        return system_lock.hold("shop", "world", tmp_path / "here", by="kim", incident=INCIDENT, service=service)

    location = str(tmp_path)
    things, more = (lease(location, f"world.{name}", "here") for name in ("things", "more"))
    things.check()
    more.check()
    with hold(more):
        with hold(things):
            assert claim(location, "shop of world", "there") is None
        things.release()
        assert claim(location, "shop of world", "there") is None
    assert claim(location, "shop of world", "there") == {}


def test_of_many_at_once_one_holds_it(tmp_path: Path) -> None:
    machines = [f"m{number}" for number in range(16)]
    for turn in range(5):
        service = f"world.things{turn}"

        def one(machine: str, service: str = service) -> bool:
            return claim(str(tmp_path), service, machine) is not None

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(one, machines)) == 1
        names = {path.name for path in (tmp_path / ".leases" / service).iterdir()}
        assert names == {"000001-held.json"}


def test_a_line_that_is_there_twice_is_chosen_by_its_chain(tmp_path: Path, place: World, here: Machine) -> None:
    console.recover(place.session(), Plain(), yes=True)
    (journal,) = here.journals()
    mirrored = place.root / "mirror" / journal.name
    third = next(mirrored.glob("000003-*"))
    other = b'{"n":3,"previous":"x"}'
    (mirrored / mirror_store.name_of(3, other)).write_bytes(other + b"\n")
    assert mirror_store.lines(str(place.root / "mirror"), journal.name) == (journal / FILE).read_bytes().splitlines()
    third.write_bytes(third.read_bytes().replace(b'"at"', b'"aT"'))
    assert len(mirror_store.lines(str(place.root / "mirror"), journal.name)) == 2, "it is not what its name says"
    third.unlink()
    assert (
        mirror_store.lines(str(place.root / "mirror"), journal.name) == (journal / FILE).read_bytes().splitlines()[:2]
    )
