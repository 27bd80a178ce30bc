"""When an outage of a whole platform began: one that is worked on in several calls is one outage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from salvor import clock, console, outage, whole_platform
from salvor.errors import CannotError
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.whole_platform import Asked

from tests import trouble
from tests.test_applications import place as place  # the world of services and programs
from tests.test_whole_platform import destroy, restore
from tests.test_whole_platform import no_records as no_records
from tests.world import GOOD, World


class KilledBeforeTheSecondTier(Plain):
    """Where nothing is under way: no incident is open. `passes` is called when the first one is back."""

    def __init__(self, passes: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.passes = passes

    def tell(self, text: str) -> None:
        if "is back." in text:
            self.passes()
        if "(tier 2)" in text:
            raise KeyboardInterrupt
        super().tell(text)


def test_a_call_that_was_killed_between_two_tiers_goes_on_in_the_same_outage(place: World) -> None:
    destroy(place)
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    with clock.use(lambda: begun), pytest.raises(KeyboardInterrupt):
        whole_platform.restore("world", KilledBeforeTheSecondTier(), Asked(), yes=True)
    assert len(place.journals()) == 1
    with clock.use(lambda: begun + timedelta(minutes=10)):
        assert set(restore().values()) == {"back"}
    rto = {each.lines[0]["service"]: each.of("measured")[-1]["rto"] for each in place.journals()}
    assert rto == {"things": 0.0, "shop": 600.0, "office": 600.0, "rest": 600.0}
    (place.root / "shop").write_text("")
    with clock.use(lambda: begun + timedelta(minutes=20)):
        assert restore()["shop"] == "back"
    last = max(place.journals(), key=lambda each: str(each.lines[0]["detected_at"]))
    assert last.of("measured")[-1]["rto"] == 0.0, "that was another outage"


def test_an_outage_goes_on_while_it_is_worked_on_however_long_that_takes(place: World) -> None:
    destroy(place)
    now = [datetime(2026, 1, 1, tzinfo=UTC)]

    def hours_pass() -> None:
        now[0] += timedelta(hours=3)

    with clock.use(lambda: now[0]):
        with pytest.raises(KeyboardInterrupt):
            whole_platform.restore("world", KilledBeforeTheSecondTier(hours_pass), Asked(), yes=True)
        restore()
    rto = {each.lines[0]["service"]: each.of("measured")[-1]["rto"] for each in place.journals()}
    assert rto == {"things": 0.0, "shop": 10800.0, "office": 10800.0, "rest": 10800.0}


def test_what_was_brought_back_and_breaks_again_is_no_part_of_the_outage_that_a_cut_off_call_left(place: World) -> None:
    destroy(place)
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    with clock.use(lambda: begun), pytest.raises(KeyboardInterrupt):
        whole_platform.restore("world", KilledBeforeTheSecondTier(), Asked(), yes=True)
    with clock.use(lambda: begun + timedelta(minutes=10)):
        console.recover(open_session("shop", Plain(), platform="world"), Plain(), yes=True)
    destroy(place)
    with clock.use(lambda: begun + timedelta(minutes=30)):
        restore()
    rto: dict[str, float] = {}
    for each in sorted(place.journals(), key=lambda each: str(each.of("measured")[-1]["good_at"])):
        rto[each.lines[0]["service"]] = each.of("measured")[-1]["rto"]
    assert rto == {"things": 0.0, "shop": 0.0, "office": 1800.0, "rest": 1800.0}


@pytest.mark.parametrize(("hours", "failed"), [(2, None), (0.5, 0.2)])
def test_what_breaks_later_or_broke_after_that_call_is_another_outage(
    place: World, hours: float, failed: float | None
) -> None:
    destroy(place)
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    with clock.use(lambda: begun), pytest.raises(KeyboardInterrupt):
        whole_platform.restore("world", KilledBeforeTheSecondTier(), Asked(), yes=True)
    failed_at = begun + timedelta(hours=failed) if failed else None
    with clock.use(lambda: begun + timedelta(hours=hours)):
        whole_platform.restore("world", Plain(), Asked(failed_at=failed_at), yes=True)
    assert {each.of("measured")[-1]["rto"] for each in place.journals()} == {0.0}


@pytest.mark.parametrize("purpose", ["drill", "incident"])
def test_a_drill_is_no_part_of_an_outage(place: World, purpose: Literal["drill", "incident"]) -> None:
    destroy(place)
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    with clock.use(lambda: begun), pytest.raises(KeyboardInterrupt):
        whole_platform.restore("world", KilledBeforeTheSecondTier(), Asked(purpose=purpose), yes=True)
    other = "incident" if purpose == "drill" else "drill"
    with clock.use(lambda: begun + timedelta(minutes=10)):
        whole_platform.restore("world", Plain(), Asked(purpose=other), yes=True)
    assert {each.of("measured")[-1]["rto"] for each in place.journals()} == {0.0}
    (place.root / "shop").write_text("")
    with clock.use(lambda: begun + timedelta(minutes=20)):
        restore()
    rto = {each.of("measured")[-1]["rto"] for each in place.journals()}
    assert rto == ({0.0} if purpose == "drill" else {0.0, 1200.0}), "the outage goes on, whatever was tried beside it"


@pytest.mark.parametrize(
    ("platform", "later", "undone"),
    [
        ("world", timedelta(days=2), False),
        ("world", timedelta(hours=2), True),
        ("other", timedelta(hours=2), False),
    ],
)
def test_an_incident_of_long_ago_or_that_is_undone_or_elsewhere_is_another_outage(
    place: World, platform: str, later: timedelta, undone: bool
) -> None:
    shutil.copy(place.root / "inventory/world.yaml", place.root / "inventory/other.yaml")
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    (place.root / "shop").write_text("")
    trouble.order(place.root, "shop", "start", "fail")
    with clock.use(lambda: begun):
        with pytest.raises(CannotError, match="does not want to"):
            whole_platform.restore(platform, Plain(), Asked(), yes=True)
        shop = next(each for each in place.journals() if each.lines[0]["service"] == "shop")
        if undone:
            aftermath.undo(shop.folder.name, Plain(), yes=True)
    place.damage()
    with clock.use(lambda: begun + later):
        restore()
    things = next(each for each in place.journals() if each.lines[0]["service"] == "things")
    assert things.of("measured")[-1]["rto"] == 0.0


def test_a_note_of_the_outage_that_cannot_be_read_or_written_holds_nobody_up(place: World) -> None:
    destroy(place)
    for damaged in (b"", b"yesterday today\n"):
        outage._note("world").write_bytes(damaged)
        assert outage.begun_at("world") is None
    outage._note("world").unlink()
    outage._note("world").mkdir()
    assert set(restore().values()) == {"back"}


def test_an_outage_that_was_worked_on_hours_from_now_is_another_one(place: World) -> None:
    with clock.use(lambda: datetime(2026, 1, 2, tzinfo=UTC)):
        outage.goes_on("world", clock.now())
        assert outage.begun_at("world") and not outage.begun_at("other"), "each platform has its own"
    with clock.use(lambda: datetime(2026, 1, 1, tzinfo=UTC)):
        assert outage.begun_at("world") is None, "the clock was stepped back since"


def test_damage_was_not_detected_before_it_began_whatever_else_stands_open(place: World) -> None:
    (place.root / "shop").write_text("")
    trouble.order(place.root, "shop", "start", "fail")
    with pytest.raises(CannotError, match="does not want to"):
        restore()
    began = clock.now()
    place.damage()
    results = whole_platform.restore("world", Plain(), Asked(failed_at=began), yes=True)
    assert {each.service.name: each.state for each in results}["shop"] == "back", "it has no data: its incident goes on"
    (things,) = (each for each in place.journals() if each.lines[0]["service"] == "things")
    assert place.live == GOOD
    assert began <= clock.read_time(things.lines[0]["detected_at"])
