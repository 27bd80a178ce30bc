"""A step that needs a second person waits for one: on the small world, with real files and processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from salvor import aftermath, clock, console, handover, notebook, story
from salvor.approval import giving, paper, places
from salvor.approval.settings import SecondPerson
from salvor.approval.waiting import Gate
from salvor.errors import CannotError, PlanMovedError, UsageError
from salvor.show import Json, Plain

from tests import trouble, world
from tests.test_lease import Machine
from tests.world import BAD, GOOD, World

SECOND = "lee@there"


def ask_for_two(place: World, rule: str) -> None:
    """Let the service need a second person."""
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("messages: post\n", f"messages: post\n    second_person: {rule}\n"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    for name, value in world.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of whoever runs the tests
    monkeypatch.delenv("SALVOR_SIGNING_KEY", raising=False)
    made = world.make(tmp_path)
    made.damage()
    ask_for_two(made, "{steps: [reroute], within: 20s}")
    return made


@contextmanager
def restoring(place: World) -> Iterator[Future[str]]:
    """The first operator's command, at work beside the block; its result is what it said."""
    said = io.StringIO()

    def work() -> str:
        session = place.session()
        session.runner.watcher = Plain(said)
        console.recover(session, Plain(said), yes=True)
        return said.getvalue()

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def until(happened: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def lines(place: World, *kinds: str) -> list[dict[str, Any]]:
    return [line for journal in place.journals() for line in journal.of(*kinds)]


def waits(place: World) -> Callable[[], bool]:
    """Whether the step before the one that waits has ended."""
    return lambda: any(line["step"] == "verify" and line["phase"] == "ended" for line in lines(place, "step"))


def the_incident(place: World) -> str:
    return place.journals()[0].folder.name


def approve(place: World, who: str = SECOND, key: str = "") -> None:
    """As somebody else, approve what is asked for."""
    until(lambda: lines(place, "asked"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALVOR_OPERATOR", who)
        giving.approve(the_incident(place), lines(place, "asked")[-1]["hash"], key, Plain())


def folder_of_approvals(place: World) -> Path:
    return place.journals()[0].folder / places.FOLDER


def keys_of_the_plan(place: World) -> list[str]:
    return [change["key"] for change in lines(place, "approved")[-1]["changes"]]


def test_the_step_waits_until_somebody_else_approves(place: World) -> None:
    with restoring(place) as command:
        until(waits(place))
        time.sleep(0.3)
        assert (place.live, place.sign) == (BAD, "10.0.0.1"), "it waits"
        shown = list(handover.screen(handover.of(story.read(place.journals()[0].folder), place.journals()[0].folder)))
        assert any(line.startswith("waits       reroute of plan") for line in shown)
        approve(place)
        said = command.result(20)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    [confirmed] = lines(place, "confirmed")
    assert confirmed["who"] == SECOND
    assert confirmed["hash"] == lines(place, "approved")[0]["hash"]
    assert clock.age(clock.read_time(confirmed["said_at"])) < timedelta(minutes=1)
    assert confirmed["where"]
    begun = next(line for line in lines(place, "intent") if line["step"] == "reroute")
    assert confirmed["n"] < begun["n"]
    assert f"Somebody else than tester@here: inv incident.approve --incident={the_incident(place)}" in said
    assert place.letters == ["declared", "asked", "recovered"]
    [by_two] = [each for each in story.read(place.journals()[0].folder).approvals if each.by == SECOND]
    assert by_two.changes
    sentences = [event.text for event in story.read(place.journals()[0].folder).events]
    assert any(f"{SECOND} approved plan {confirmed['hash']} as the second person" in each for each in sentences)


def test_yes_is_no_second_person_and_nothing_is_done_at_the_deadline(place: World) -> None:
    ask_for_two(place, "{steps: [reroute], within: 1s}")
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("\n    second_person: {steps: [reroute], within: 20s}", ""))
    with pytest.raises(CannotError, match="nobody else approved the plan") as refused:
        console.recover(place.session(), Plain(), yes=True)
    assert "inv incident.approve --incident=" in refused.value.hint
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    assert not [line for line in lines(place, "intent") if line["step"] == "reroute"]
    approve(place)  # now that the command has ended
    console.recover(place.session(), Plain(), yes=True)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    assert len(lines(place, "asked")) == 1


def test_an_approval_while_the_copy_is_still_staged_is_waited_for_no_longer(place: World) -> None:
    trouble.order(place.root, "store", "stage", "slow")
    with restoring(place) as command:
        approve(place)
        assert not waits(place)()
        said = command.result(20)
    assert place.live == GOOD
    assert "waits for a second person" not in said.split("== assess")[1]


@pytest.mark.parametrize("name", ["tester@here", "Tester@HERE", " tester @here", "\uff54ester@here"])
def test_the_one_who_acts_is_no_second_person(place: World, name: str) -> None:
    with restoring(place) as command:
        with pytest.raises(CannotError, match="no second person"):
            approve(place, name)
        name_of_file, content = paper.write(the_incident(place), keys_of_the_plan(place), name, None)
        places.here(place.journals()[0].folder).store.create(name_of_file, content)
        until(lambda: lines(place, "refused"))
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
        until(lambda: len(lines(place, "asked")) == 2)
        until(waits(place))
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
        until(lambda: lines(place, "refused"))
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
        until(lambda: len(lines(place, "asked")) == 2)
        until(waits(place))
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
        until(lambda: lines(place, "asked"))
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


def test_hostile_files_do_not_count_and_hold_nobody_up(place: World) -> None:
    with restoring(place) as command:
        until(lambda: lines(place, "asked"))
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
        until(waits(place))
        until(lambda: len(lines(place, "refused")) == 9)
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


def test_a_clock_that_jumps_neither_ends_the_wait_nor_the_approval(place: World) -> None:
    jump = timedelta()
    with clock.use(lambda: clock._system_clock() + jump), restoring(place) as command:
        until(waits(place))
        jump = timedelta(days=400)
        time.sleep(0.7)
        assert not command.done()
        jump = -timedelta(days=400)
        approve(place)
        jump = timedelta(days=1)
        command.result(20)
    assert place.live == GOOD


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_stopped_while_it_waits_nothing_is_done_and_the_same_command_goes_on(place: World, by: signal.Signals) -> None:
    code = (
        "from salvor import console; from salvor.opening import open_session; from salvor.show import Plain\n"
        "opened = open_session('things', Plain(), platform='world')\n"
        "console.ends_with_exit_code(console.recover)(opened, Plain(), yes=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "processes")}
    command = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(waits(place), 30)
    time.sleep(0.3)
    command.send_signal(by)
    said, _ = command.communicate(timeout=30)
    assert command.returncode == (130 if by is signal.SIGINT else -by), said
    assert (place.live, place.sign) == (BAD, "10.0.0.1")
    approve(place)
    with restoring(place) as again:
        again.result(20)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")


# ------------------------------------------------------------------------------------------ another machine


def test_from_another_machine_through_the_mirror(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "mirror").mkdir()
    monkeypatch.setenv("SALVOR_MIRROR", str(place.root / "mirror"))
    there = Machine(place, "there")
    with restoring(place) as command:
        until(waits(place))
        asked = lines(place, "asked")[0]["hash"]
        done = there.inv("incident.approve", f"--incident={the_incident(place)}", f"--hash={asked}")
        assert done.returncode == 0, done.stderr
        assert "store: promote" in done.stdout
        command.result(20)
    assert place.live == GOOD
    assert [line["who"] for line in lines(place, "confirmed")] == ["kim@there"]
    assert len(list(folder_of_approvals(place).iterdir())) == 1, "it is kept as evidence"
    assert not list(there.incidents.glob("*")), "that machine writes nothing of its own"


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
        until(waits(place))
        approve(place)
        said = command.result(20)
    assert place.live == GOOD
    assert "Whether there are approvals in" in said


# ------------------------------------------------------------------------------------------ signatures


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
    )
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("within: 20s}", f"within: 20s, signers: {signers}}}"))
    monkeypatch.setenv("SALVOR_SIGNING_KEY", str(mine))
    with restoring(place) as command:
        until(lambda: lines(place, "asked"))
        incident, keys = the_incident(place), keys_of_the_plan(place)
        here = places.here(place.journals()[0].folder).store
        here.create(*paper.write(incident, keys, SECOND, None))
        until(lambda: len(lines(place, "refused")) == 1)
        approve(place, key=str(mallory))
        until(lambda: len(lines(place, "refused")) == 2)
        approve(place, key=str(mine))
        until(lambda: len(lines(place, "refused")) == 3)
        _, content = paper.write(incident, keys, "somebody@else", lee)
        stolen = json.loads(content)["signature"]  # of another text
        text = json.loads(paper.write(incident, keys, SECOND, None)[1])["approval"]
        forged = (json.dumps({"approval": text, "signature": stolen}) + "\n").encode()
        here.create(paper._name(paper.hash_of(keys), forged), forged)
        until(lambda: len(lines(place, "refused")) == 4)
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


# ------------------------------------------------------------------------------------------ elsewhere


def test_the_plan_says_which_steps_wait(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    console.recover(place.session(), Plain(), plan_only=True)
    assert "NOTE: reroute waits until somebody other than tester@here approves the plan" in capsys.readouterr().out
    console.recover(place.session(), Json(), plan_only=True)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["second_person"] for each in said if each["kind"] == "plan"] == [["reroute"]]
    assert not place.journals()


def test_in_the_notebook_it_waits_as_well(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("salvor.live.make_record", lambda session, shown: None)
    walk = notebook.open({"service": "things", "platform": "world", "approve": "yes"})
    for step in ("assess", "notify", "isolate", "restore", "verify"):
        walk.act(step)
    with ThreadPoolExecutor(1) as pool:
        act = pool.submit(walk.act, "reroute")
        time.sleep(0.7)
        assert not act.done() and place.live == BAD
        approve(place)
        act.result(20)
    walk.act("notify", again=True)
    walk.finish()
    assert place.live == GOOD
    assert "reroute waits until somebody other than" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["undo", "discard"])
def test_what_ends_an_incident_may_need_two_as_well(place: World, name: str) -> None:
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("[reroute]", f"[{name}]"))
    console.recover(place.session(), Plain(), yes=True)
    incident = the_incident(place)
    work = {"undo": aftermath.undo, "discard": aftermath.discard}[name]
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(work, incident, Plain(), yes=True)
        until(lambda: lines(place, "asked"))
        time.sleep(0.3)
        assert place.kept == [BAD] and place.live == GOOD
        approve(place)
        command.result(20)
    assert place.kept == []


def test_a_rehearsal_needs_nobody(place: World) -> None:
    place.store.joinpath("live/data").write_text(GOOD)
    path = place.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("[reroute]", "[restore, undo]"))
    book = Path(__file__).parents[2] / "runbooks/rehearsal.py"
    assert book.exists()
    session = place.session(runbook="rehearsal")
    assert session.incident.steps_of_two == ()


def test_the_runner_itself_does_nothing_that_only_one_approved(place: World) -> None:
    session = place.session()
    plan = session.plan()
    with session.begin():
        session.approve(plan, "a test")
        for name in ("assess", "isolate", "restore", "verify"):
            session.act(name)
        with pytest.raises(PlanMovedError, match="what no second person approved"):
            session.runner.run(session.step("reroute"))
    assert (place.live, place.sign) == (BAD, "10.0.0.1")


def test_a_setting_that_could_not_be_is_refused(place: World) -> None:
    for wrong in ("{steps: []}", "{steps: [verify]}", "{steps: [reroute], within: 0s}", "{steps: [reroute], x: 1}"):
        path = place.root / "inventory/world.yaml"
        text = path.read_text()
        path.write_text(text.replace("{steps: [reroute], within: 20s}", wrong))
        with pytest.raises(UsageError, match="second_person"):
            place.session()
        path.write_text(text)
