"""What the operator meets: approvals, JSON lines throughout, and the exit codes of real `inv` processes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from salvor import console, show
from salvor.change import Level
from salvor.commands.ending import ends_with_exit_code
from salvor.errors import CannotError, NotProvenError, PlanMovedError
from salvor.plan import Plan
from salvor.session import aftermath
from salvor.show import Plain

from tests import trouble, world
from tests.world import BAD, GOOD, World

ROOT = Path(__file__).parents[1]


def recover(place: World, **more: Any) -> str:
    sitting = place.session()
    console.recover(sitting, Plain(), **(more or {"yes": True}))
    return sitting.incident.id


# ------------------------------------------------------------------------------------------ approvals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let somebody sit at the terminal and type this."""
    monkeypatch.setattr("sys.stdin", Terminal(text))


def test_nobody_at_the_terminal_approves_nothing(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    with pytest.raises(CannotError, match="nobody is at the terminal") as refused:
        recover(place, yes=False)
    assert refused.value.hint == f"the same command with --approve={place.session().plan().hash}, or --yes"
    assert not place.journals()


def test_what_answers_and_takes_no_writes_is_not_called_sound(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    """As a PostgreSQL does whose commits wait for a synchronous standby that is gone. No restore would mend that."""
    (place.store / "live" / "data").write_text(GOOD)
    (place.store / "hangs").touch()
    console.assess(place.session(), Plain())
    said = capsys.readouterr().out
    assert "FAIL    store: takes writes: a folder" in said and "Nothing is broken" not in said
    with pytest.raises(CannotError, match="takes writes"):
        recover(place)


def test_what_gives_no_answer_is_not_called_broken(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    place.damage()
    sitting = place.session()
    plan = sitting.plan()
    (seen,) = (
        finding for finding in plan.steps[0].findings if (finding.subject, finding.check) == ("store", "answers")
    )
    silent = replace(seen, level=Level.UNKNOWN)
    findings = tuple(silent if finding is seen else finding for finding in plan.steps[0].findings)
    console.ask(sitting, Plain(), plan, plan_only=True)
    assert "whether it is broken is not known" not in capsys.readouterr().out
    unseen = Plan((replace(plan.steps[0], findings=findings), *plan.steps[1:]))
    console.ask(sitting, Plain(), unseen, plan_only=True)
    assert "NOTE: store gives no answer, so whether it is broken is not known" in capsys.readouterr().out


def test_what_cannot_be_told_is_not_called_sound(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    (place.store / "live" / "data").write_text(GOOD)
    sitting = place.session()
    plan = sitting.plan()
    console.ask(sitting, Plain(), plan)
    assert "Nothing is broken in" in capsys.readouterr().out
    findings = tuple(replace(finding, level=Level.UNKNOWN) for finding in plan.steps[0].findings)
    console.ask(sitting, Plain(), Plan((replace(plan.steps[0], findings=findings), *plan.steps[1:])))
    (place.store / "without-tool").touch()
    console.assess(place.session(), Plain())
    said = capsys.readouterr().out
    assert "Not everything could be told (see above); nothing is known to be broken in" in said
    assert "warn    store: is as the inventory describes it: no: its tool is not there" in said


def test_typed_at_the_terminal(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    typing(monkeypatch, " yes \n")
    recover(place, yes=False)
    assert place.live == GOOD
    assert place.journals()[0].of("approved")[0]["how"] == "typed at the terminal"


def test_ctrl_c_at_the_question_says_that_nothing_was_done(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typing(monkeypatch, "")

    def stop(question: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", stop)
    with pytest.raises(SystemExit) as ended:
        ends_with_exit_code(lambda: recover(place, yes=False))()
    assert ended.value.code == 130
    assert "before this was approved: nothing of it was done" in capsys.readouterr().err
    assert place.live == BAD and not place.journals()


@pytest.mark.parametrize("typed", ["no\n", "\n", "y\n", "", "yes please\n"])
def test_anything_else_is_no(place: World, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    typing(monkeypatch, typed)
    with pytest.raises(CannotError, match="It was not approved") as refused:
        recover(place, yes=False)
    assert "only yes, typed in full, approves" in refused.value.hint
    assert (place.live, place.letters) == (BAD, [])


def test_what_is_removed_for_good_is_named_by_its_identity(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    incident = recover(place)
    [kept] = place.session().incident.systems[0].observe().kept
    for typed in ("yes\n", kept.name + "\n", kept.identity[:-1] + "\n", kept.identity.upper() + "\n"):
        typing(monkeypatch, typed)
        with pytest.raises(CannotError, match="It was not approved"):
            aftermath.discard(incident, Plain())
        assert place.kept == [BAD]
    typing(monkeypatch, f"{kept.identity}\n")
    aftermath.discard(incident, Plain())
    assert place.kept == []


def test_an_approved_plan_is_approved_until_it_is_done(place: World) -> None:
    """The same command again, with the same --approve, goes on after a crash."""
    hash_ = place.session().plan().hash
    trouble.order(place.root, "store", "promote", "fail")
    with pytest.raises(CannotError, match="does not want"):
        recover(place, approve=hash_)
    assert place.live == BAD
    recover(place, approve=hash_)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    recover(place, approve=hash_)
    assert len(place.journals()) == 1


def test_an_approval_is_for_its_own_changes(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    hash_ = place.session().plan("isolate").hash
    sitting = place.session()
    console.recover(sitting, Plain(), "isolate", approve=hash_)
    console.assess(place.session(), Plain())
    assert f"store was broken when {sitting.incident.id} began: " in capsys.readouterr().out
    with pytest.raises(PlanMovedError, match=f"--approve={hash_} is not the hash of this plan"):
        recover(place, approve=hash_)
    with pytest.raises(PlanMovedError):
        recover(place, approve="0" * 12)
    assert place.live == BAD


def test_a_step_that_is_typed_before_its_turn_is_refused_and_wakes_nobody(place: World) -> None:
    for name in ("verify", "reroute"):
        with pytest.raises(NotProvenError, match=f"{name} cannot be done yet") as refused:
            console.recover(place.session(), Plain(), name, yes=True)
        assert refused.value.hint.startswith("inv restore --service=things --platform=world does first")
    assert not place.journals()
    console.recover(place.session(), Plain(), "restore", yes=True)
    assert place.session().plan("reroute").changes == (), "a plan does not promise what it will not do"
    with pytest.raises(NotProvenError, match="was not passed by verify"):
        console.recover(place.session(), Plain(), "reroute", yes=True)
    assert (place.live, place.letters) == (BAD, [])
    for name in ("verify", "reroute"):
        console.recover(place.session(), Plain(), name, yes=True)
    assert (place.live, place.letters) == (GOOD, [])


# ------------------------------------------------------------------------------------------ JSON lines


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert found
    assert all(isinstance(each, dict) and {"at", "kind"} <= each.keys() for each in found)
    return found


def test_json_lines_throughout(
    place: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show.Json()
    console.recover(place.session(), shown, plan_only=True)
    [plan] = [each for each in objects(capsys.readouterr().out) if each["kind"] == "plan"]
    assert [step["step"] for step in plan["steps"]] == [
        "assess",
        "notify",
        "isolate",
        "restore",
        "verify",
        "reroute",
        "notify",
    ]
    assert plan["hash"] == place.session().plan().hash
    sitting = place.session()
    sitting.runner.watcher = shown
    console.recover(sitting, shown, approve=plan["hash"])
    said = objects(capsys.readouterr().out)
    assert {"told", "plan", "step", "finding", "begun", "progress", "ended", "end"} <= {each["kind"] for each in said}
    assert (said[-1]["kind"], said[-1]["recovered"]) == ("end", True)
    planned = {change["key"] for step in plan["steps"] for change in step["changes"]}
    assert {each["key"] for each in said if each["kind"] == "ended"} == planned
    incident = sitting.incident.id
    for work in (aftermath.discard, aftermath.undo):
        work(incident, shown, plan_only=True)
        [plan] = [each for each in objects(capsys.readouterr().out) if each["kind"] == "plan"]
        assert plan["steps"][0]["changes"]
    typing(monkeypatch, "yes\n")
    with pytest.raises(CannotError, match="nobody is at the terminal"):  # a question would be no JSON
        aftermath.undo(incident, shown)
    capsys.readouterr()
    aftermath.undo(incident, shown, yes=True)
    aftermath.show_incident(incident, shown)
    aftermath.list_incidents(shown)
    assert {"plan", "begun", "ended", "incident"} <= {each["kind"] for each in objects(capsys.readouterr().out)}


# ------------------------------------------------------------------------------------------ real processes


def inv(place: World, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        inv_command(*arguments),
        cwd=ROOT,
        env=inv_environment(place) | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def inv_command(*arguments: str) -> list[str]:
    found = shutil.which("inv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found
    return [found, *arguments]


def inv_environment(place: World) -> dict[str, str]:
    return {**os.environ, **world.environment(place.root), "PYTHONPATH": str(ROOT / "tests" / "processes")}


SERVICE = ("--service=things", "--platform=world")


def ended(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with this exit code, with these words for the operator, and without a traceback."""
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert not [word for word in words if word not in said], said
    assert "Traceback" not in said


def test_0_done_and_nothing_to_do(place: World) -> None:
    looked = inv(place, "assess", *SERVICE, "--json")
    ended(looked, 0)
    [decision] = [each["decision"] for each in objects(looked.stdout) if each["kind"] == "decision"]
    assert (decision["system"], decision["way"]["name"]) == ("store", "copy")
    ended(inv(place, "assess", *SERVICE), 0, "store is broken: ", "Way back: copy.")
    planned = inv(place, "restore", *SERVICE, "--plan", "--json")
    ended(planned, 0)
    [plan] = [each for each in objects(planned.stdout) if each["kind"] == "plan"]
    assert not place.journals()
    done = inv(place, "restore", *SERVICE, f"--approve={plan['hash']}", "--json")
    ended(done, 0)
    objects(done.stdout)
    assert (place.live, place.sign) == (GOOD, "127.0.0.1")
    ended(inv(place, "assess", *SERVICE), 0, "Nothing is broken: ", "brought it back")
    ended(inv(place, "restore", *SERVICE, "--step", "--yes"), 0, "Nothing left to do")
    (place.root / "incidents").rename(place.root / "earlier")
    ended(inv(place, "restore", *SERVICE, "--failed-at=2026-11-20T00:00:00Z"), 0, "Nothing is broken", "--at=TIME")


def test_2_usage(place: World) -> None:
    wrong = {
        ("verify",): ("--service is missing", "HINT: add --service=NAME"),
        ("restore", "--service=nope", "--platform=world"): ("no service 'nope'", "its services are: things"),
        ("restore", *SERVICE, "--at=yesterday"): ("--at: 'yesterday' is not a time.", "ISO 8601"),
        ("backup", *SERVICE, "--kind=FULL"): ("--kind: there is no backup of kind 'FULL'", "it is full, "),
        ("restore", *SERVICE, "--runbook=nope"): ("--runbook: there is no runbook 'nope'", "from_backup"),
        ("undo", "--incident=nope"): ("--incident: there is no incident 'nope'",),
        ("restore", "things"): ("takes no 'things'", "HINT: inv restore --service=things\n"),
    }
    with ThreadPoolExecutor(3) as pool:
        for done, words in zip(pool.map(lambda arguments: inv(place, *arguments), wrong), wrong.values(), strict=True):
            ended(done, 2, *words)
    inventory = place.root / "inventory" / "world.yaml"
    inventory.write_text(inventory.read_text().replace("rto: 5m", "rto: soon"))
    ended(inv(place, "assess", *SERVICE), 2, f"{inventory}:9:5: ", "is not a duration")
    assert not place.journals()
    assert place.live == BAD


def test_3_cannot(place: World) -> None:
    ended(inv(place, "restore", *SERVICE, "--from=nope", "--yes"), 3, "no way back is open", "no backup nope", "HINT: ")
    done = inv(place, "restore", *SERVICE)
    ended(done, 3, "nobody is at the terminal", "Safe now: nothing was changed")
    assert "\n  store: " in done.stdout.partition("way back")[0], "what is broken is said before a way back is approved"
    assert place.live == BAD


def test_4_not_converged(place: World) -> None:
    trouble.order(place.root, "store", "fence", "unknown before")
    ended(inv(place, "isolate", *SERVICE, "--yes"), 4, "still plans", "store: fence", "Safe now: ")


def test_5_plan_moved(place: World) -> None:
    ended(inv(place, "restore", *SERVICE, "--approve=0123456789ab"), 5, "is not the hash of this plan")
    assert not place.journals()


def test_6_not_proven(place: World) -> None:
    (place.store / "backups/b1/data").write_text("also bad\n")
    too_early = "nothing was changed, and nobody was told", "inv restore --service=things --platform=world does first"
    ended(inv(place, "reroute", *SERVICE, "--yes"), 6, "was not passed by verify", *too_early)
    ended(inv(place, "restore", *SERVICE, "--step", "--yes"), 0)
    ended(inv(place, "verify", *SERVICE, "--yes"), 6, "verify did not pass", "store is good", "inv backups")
    assert (place.live, place.sign) == (BAD, "10.0.0.1")


def test_7_held(place: World) -> None:
    with place.session().begin():
        ended(
            inv(place, "isolate", *SERVICE, "--yes", SALVOR_OPERATOR="lee@there"),
            7,
            "tester@here works on things",
            "kill ",
        )


def test_130_stopped_by_the_operator(place: World) -> None:
    trouble.order(place.root, "store", "stage", "slow")
    command = inv_command("restore", *SERVICE, "--yes")
    running = subprocess.Popen(
        command, cwd=ROOT, env=inv_environment(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(place.store.glob("stage-*")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    assert running.stdout and running.stderr
    running.stdout.close()  # as tee does, which Ctrl-C ends first
    running.send_signal(signal.SIGINT)
    complained = running.stderr.read()
    assert running.wait(20) == 130, complained
    running.stderr.close()
    assert "Stopped by you." in complained
    assert "Users may be shut out of store by now: inv undo --incident=" in complained
    assert "Traceback" not in complained
    ended(inv(place, "restore", *SERVICE, "--step", "--yes"), 0)
    assert place.live == BAD


def test_what_nobody_foresaw_is_said_in_words_and_told_in_a_file(place: World) -> None:
    (place.root / "store" / "backups" / "b1" / "data").unlink()
    done = inv(place, "restore", *SERVICE, "--step", "--yes")
    ended(
        done, 1, "Salvor met an error of its own: FileNotFoundError", "HINT: the same command again goes on from here"
    )
    story = Path(done.stderr.rsplit("the whole story is in ", 1)[1].strip())
    assert "Traceback" in story.read_text()
    assert story.stat().st_mode & 0o077 == 0
    story.unlink()
    assert place.letters == ["failed"]


def test_a_reader_that_leaves_is_no_error(place: World) -> None:
    command = inv_command("restore", *SERVICE, "--plan")
    running = subprocess.Popen(
        command, cwd=ROOT, env=inv_environment(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout and running.stderr
    running.stdout.close()
    complained = running.stderr.read()
    assert running.wait(20) in (0, 141)
    assert "Traceback" not in complained
    running.stderr.close()
