"""A whole platform at once: what is broken is brought back in the order of what it depends on, and of its tier; what
does not depend on each other comes back side by side.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from salvor import console, inventory, whole_platform
from salvor.errors import CannotError, NotProvenError, SalvorError, UsageError
from salvor.journal import Journal, incidents
from salvor.show import Json, Plain
from salvor.whole_platform import Asked, Result

from tests import trouble
from tests.test_applications import acts, recover, runs
from tests.test_applications import place as place  # the world of services and programs
from tests.world import BAD, GOOD, World

_VALUES = """\
  values:
    rto: 5m
    rpo: 1d
    systems: [values]
    checks: [{name: all of it is there, system: values, sql: good, at_least: 3}]
"""


@pytest.fixture(autouse=True)
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made after all is back, and tried elsewhere."""
    monkeypatch.setattr(console, "make_record", lambda session, shown: None)


def restore() -> dict[str, str]:
    results = whole_platform.restore("world", Plain(), Asked(), yes=True)
    return {each.service.name: each.state for each in results}


def destroy(place: World) -> None:
    place.damage()
    for name in ("shop", "office"):
        (place.root / name).write_text("")


def test_all_that_is_broken_is_brought_back_in_its_order(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    destroy(place)
    assert restore() == {"things": "back", "shop": "back", "office": "back", "rest": "back"}
    assert place.live == GOOD
    assert all(runs(place).values())
    assert acts(place, "shop") == ["start good"]
    said = capsys.readouterr().out
    table = said[said.rindex("tier  service") :].splitlines()
    assert [line.split()[1] for line in table[1:5]] == ["things", "shop", "office", "rest"]
    assert "allowed: met" in table[1]
    detected = {Journal.read(each).lines[0]["detected_at"] for each in incidents(place.root / "incidents")}
    assert len(detected) == 1  # whoever waited for the others waited in an outage


def stand_on_values(place: World) -> None:
    """Every program also works on the data of a service `values`, which is broken, and shop dies of that."""
    values, path = place.root / "values", place.root / "inventory/world.yaml"
    shutil.copytree(place.store, values)
    path.write_text(
        path.read_text()
        .replace("\nsystems:", f"\nsystems:\n  values: {{kind: folder, root: {values}}}", 1)
        .replace("uses: [store]", "uses: [store, values]")
        .replace("depends_on: [things]", "depends_on: [things, values]")
        + _VALUES
    )
    (values / "live/data").write_text(BAD)
    (place.root / "shop.dies").write_text(str(values / "live/data"))


def test_a_program_that_dies_of_what_is_brought_back_next_is_started_in_its_own_turn(place: World) -> None:
    """Its start failed the database's cutover, and whatever waited for that waited for the same command again."""
    stand_on_values(place)
    place.damage()
    assert restore() == {"things": "back", "values": "back", "shop": "back", "office": "healthy", "rest": "back"}
    assert all(runs(place).values())
    (journal,) = [one for one in place.journals() if "-things-" in one.folder.name]
    assert {line["detail"]: line["outcome"] for line in journal.of("observed")} == {"shop: start": "not done"}
    told, *_ = [line["finding"] for line in journal.of("finding") if line["finding"]["check"] == "runs"]
    assert (told["subject"], told["level"]) == ("shop", "warn") and "values: all of it is there" in told["detail"]


def test_the_service_of_a_program_that_dies_of_other_data_is_not_back_until_that_is(place: World) -> None:
    stand_on_values(place)
    (place.root / "shop").write_text("")
    for _ in range(2):
        with pytest.raises(NotProvenError, match=r"shop: runs: no: .*values: all of it is there"):
            recover("shop")
    assert place.letters == ["declared", "failed"]
    (place.root / "values/live/data").write_text(GOOD)
    recover("shop")
    assert place.letters == ["declared", "failed", "recovered"]


def test_the_same_again_does_nothing_and_counts_no_figure_of_then(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy(place)
    restore()
    before = {name: acts(place, name) for name in ("shop", "office", "reports")}
    capsys.readouterr()
    assert set(restore().values()) == {"healthy"}
    said = capsys.readouterr().out
    table = said[said.rindex("tier  service") :].splitlines()[1:5]
    opened = [one.name for one in incidents(place.root / "incidents") if "-things-" in one.name]
    assert table[0].endswith(f"{opened[0]} brought it back") and "allowed" not in "".join(table)
    assert before == {name: acts(place, name) for name in before}
    whole_platform.assess("world", Plain())
    assert "broken" not in capsys.readouterr().out, "its incident is open, and it is back"
    assert len(list(incidents(place.root / "incidents"))) == 4


def test_a_plan_changes_and_writes_nothing(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    destroy(place)
    whole_platform.restore("world", Plain(), Asked(), plan_only=True)
    assert "stage side-folder" in capsys.readouterr().out
    assert place.live != GOOD and not any((place.root / "incidents").iterdir())


def test_what_waits_for_a_failed_one_is_not_begun_and_the_rest_is(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy(place)
    trouble.order(place.root, "shop", "start", "fail")
    with pytest.raises(CannotError, match="does not want to"):
        restore()
    assert place.live == GOOD
    assert (runs(place)["shop"], runs(place)["office"], runs(place)["reports"]) == ("", "", "run-1")
    capsys.readouterr()
    whole_platform.assess("world", Plain())
    assert re.search(r"shop +broken +shop: when \S+-shop-\w+ began: it is stopped", capsys.readouterr().out)
    assert set(restore().values()) <= {"back", "healthy"}
    assert all(runs(place).values())
    detected = [Journal.read(each).lines[0]["detected_at"] for each in incidents(place.root / "incidents")]
    assert len(detected) == 4 and len(set(detected)) == 1  # also of the one that the first call did not begin


def test_what_waits_for_one_that_was_not_begun_is_not_begun_either(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy(place)
    shutil.rmtree(place.store / "backups")
    with pytest.raises(CannotError, match="Of things it cannot be told"):
        whole_platform.assess("world", Plain())
    capsys.readouterr()
    with pytest.raises(CannotError, match="no way back"):
        restore()
    assert capsys.readouterr().out.count("not begun: it waits for ") == 3
    assert not any(acts(place, name) for name in ("shop", "office", "reports"))


def test_assess_of_all_says_what_is_broken_and_writes_nothing(place: World, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "shop").write_text("")
    whole_platform.assess("world", Json())
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["service"]: each["state"] for each in said if each["kind"] == "service"} == {
        "things": "healthy",
        "shop": "broken",
        "office": "waits",
        "rest": "broken",
    }
    assert not any((place.root / "incidents").iterdir())


def test_one_hash_cannot_approve_several_plans(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="one service"):
        whole_platform.restore("world", Plain(), Asked(), approve="0" * 12)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    place.damage()
    with pytest.raises(CannotError, match="nobody is at the terminal") as refused:
        whole_platform.restore("world", Plain(), Asked())
    assert "the same command with --service=things --approve=" in refused.value.hint


# ------------------------------------------------------------------------------------------ side by side


@contextmanager
def meanwhile(holds: Callable[[], bool], act: Callable[[], object]) -> Iterator[list[bool]]:
    """Do `act` in another thread as soon as `holds`, or ten seconds later; whether it held, after the block."""
    held: list[bool] = []

    def watch() -> None:
        until = time.monotonic() + 10
        while not (now := holds()) and time.monotonic() < until:
            time.sleep(0.02)
        held.append(now)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield held
    thread.join()


@pytest.fixture
def wide(place: World) -> World:
    """The world with a second store of a second service of the first tier."""
    for folder in ("live", "backups/b1"):
        (place.root / "shelf" / folder).mkdir(parents=True)
        (place.root / "shelf" / folder / "data").write_text(GOOD)
    path = place.root / "inventory/world.yaml"
    more = f"""systems:
  shelf: {{kind: folder, root: {place.root}/shelf}}"""
    service = """services:
  more:
    rto: 5m
    rpo: 1d
    systems: [shelf]
    checks: [{name: shelf is good, system: shelf, sql: good, at_least: 3}]"""
    path.write_text(path.read_text().replace("systems:", more, 1).replace("services:", service, 1))
    return place


def lose_both(wide: World) -> None:
    wide.damage()
    (wide.root / "shelf/live/data").write_text("bad\n")


def test_a_tier_holds_what_its_services_need_each_after_that(wide: World) -> None:
    def tiers() -> dict[int, list[list[str]]]:
        found = inventory.load("world").in_tiers()
        return {tier: [[service.name for service in wave] for wave in waves] for tier, waves in found.items()}

    assert tiers() == {1: [["more", "things"]], 2: [["shop"]], 3: [["office", "rest"]]}
    path = wide.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("tier: 2", "tier: 1"))
    assert tiers() == {1: [["more", "things"], ["shop"]], 3: [["office", "rest"]]}
    text = path.read_text().replace("office: {tier: 3", "office: {tier: 1")
    path.write_text(text.replace("  shop:\n    tier: 1", "  shop:\n    tier: 5"))
    assert tiers() == {1: [["more", "things"], ["shop"], ["office"]], 3: [["rest"]]}


def test_nobody_waits_for_what_is_not_broken(wide: World) -> None:
    path = wide.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("tier: 2", "tier: 1"))
    (wide.root / "shelf/live/data").write_text("bad\n")
    (wide.root / "shop").write_text("")
    hanging = trouble.order(wide.root, "shelf", "promote", "hang")
    with meanwhile(lambda: bool(runs(wide)["shop"]), hanging.unlink) as held:
        found = restore()
    assert held == [True]
    assert (found["more"], found["things"], found["shop"]) == ("back", "healthy", "back")


def test_services_of_a_tier_come_back_side_by_side_and_their_lines_say_whose_they_are(
    place: World, capsys: pytest.CaptureFixture[str]
) -> None:
    destroy(place)
    hanging = trouble.order(place.root, "office", "start", "hang")
    with meanwhile(lambda: bool(runs(place)["reports"]), hanging.unlink) as held:
        assert set(restore().values()) == {"back"}
    assert held == [True]
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("office  ") and "office: start" in line for line in said)
    assert any(line.startswith("rest    ") and "reports: start" in line for line in said)
    assert not any(line.startswith("shop  ") for line in said)  # it was alone


def test_those_that_stop_the_same_program_go_one_after_the_other(wide: World) -> None:
    path = wide.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("uses: [store]", "uses: [store, shelf]"))
    lose_both(wide)
    assert set(restore().values()) <= {"back", "healthy"}
    assert wide.live == (wide.root / "shelf/live/data").read_text() == GOOD
    assert acts(wide, "shop") == ["stop bad", "start bad", "stop bad", "start good"]


@pytest.mark.parametrize("first", ["things", "shop"])
def test_a_dead_program_is_started_after_the_data_that_it_works_on_is_back(
    place: World, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started before, it was to be stopped again, which nobody had approved."""
    path = place.root / "inventory/world.yaml"
    head, _, services = path.read_text().partition("services:\n")
    services = services.replace("    depends_on: [things]\n", "", 1).replace("tier: 2", "tier: 1", 1)
    at = services.index("  things:")
    services = services[at:] + services[:at] if first == "things" else services
    path.write_text(f"{head}services:\n{services}")
    destroy(place)
    assert set(restore().values()) <= {"back", "healthy"}
    assert "At once: things, then shop." in capsys.readouterr().out


def test_two_systems_in_one_place_are_brought_back_once(wide: World) -> None:
    """As two databases of one cluster that is lost: side by side, each would put its own copy in the other's place."""
    path = wide.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace(f"root: {wide.root}/shelf", f"root: {wide.root}/store"))
    wide.damage()
    found = restore()
    assert sorted((found["more"], found["things"])) == ["back", "healthy"]
    assert wide.live == GOOD and len(wide.kept) == 1


def test_those_that_share_a_program_that_is_dead_do_not_wait_for_each_other(wide: World) -> None:
    path = wide.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("uses: [store]", "uses: [store, shelf]"))
    lose_both(wide)
    for name in ("shop", "office"):
        (wide.root / name).write_text("")
    hanging = trouble.order(wide.root, "shelf", "promote", "hang")
    with meanwhile(lambda: wide.live == GOOD, hanging.unlink) as held:
        assert set(restore().values()) == {"back"}
    assert held == [True]


def test_ctrl_c_stops_all_that_is_under_way_and_the_same_command_goes_on(wide: World) -> None:
    lose_both(wide)
    for store in ("store", "shelf"):
        trouble.order(wide.root, store, "stage", "slow")
    begun = time.monotonic()

    def staging() -> bool:
        intents = [line for journal in wide.journals() for line in journal.of("intent")]
        return [line["change"]["verb"] for line in intents].count("stage") == 2

    main = threading.main_thread().ident or 0
    with (
        meanwhile(staging, lambda: signal.pthread_kill(main, signal.SIGINT)) as held,
        pytest.raises(KeyboardInterrupt) as stopped,
    ):
        restore()
    assert held == [True]
    assert time.monotonic() - begun < 8
    first, *shut = str(stopped.value).splitlines()
    assert first.startswith("Stopped by you.")
    told = re.compile(r"Users may be shut out of (\w+) by now: inv undo --incident=\S+ takes that back\.")
    assert sorted(found[1] for line in shut if (found := told.fullmatch(line))) == ["shelf", "store"]
    outcomes = [line for journal in wide.journals() for line in journal.of("outcome")]
    ended = [line["outcome"] for line in outcomes if line["step"] == "restore"]
    assert ended == ["unknown", "unknown"]
    assert wide.live == "bad\n"
    assert set(restore().values()) <= {"back", "healthy"}
    assert wide.live == (wide.root / "shelf/live/data").read_text() == GOOD
    assert sum("-rest-" not in journal.folder.name for journal in wide.journals()) == 2


class Leaving(io.StringIO):
    """Whose reader leaves when the first change is done."""

    is_left = False

    def write(self, text: str) -> int:
        if self.is_left:
            raise BrokenPipeError
        self.is_left = "  done " in text
        return super().write(text)


def test_a_reader_who_leaves_amid_it_keeps_nothing_from_being_brought_back(place: World) -> None:
    destroy(place)
    reader = Leaving()
    whole_platform.restore("world", Plain(reader), Asked(), yes=True)
    assert reader.is_left
    assert place.live == GOOD
    assert all(runs(place).values())


def test_all_that_go_at_once_are_asked_for_before_any_of_them_begins(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroy(place)
    done: list[int] = []

    def answer(question: str) -> str:
        done.append(len((place.root / "acts").read_text().splitlines()) if (place.root / "acts").exists() else 0)
        return "yes"

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    whole_platform.restore("world", Plain(), Asked())
    assert all(runs(place).values())
    assert done[0] == 0 < done[1] < done[2] == done[3]


def test_it_ends_with_the_worst_of_its_errors(place: World) -> None:
    service = inventory.load("world").service("shop")
    errors: list[SalvorError] = [CannotError("no"), NotProvenError("not proven"), UsageError("what?")]
    with pytest.raises(NotProvenError):
        whole_platform.refuse_failed([Result(service, "failed", error=error) for error in errors])
    whole_platform.refuse_failed([Result(service, "healthy")])
