"""The watcher: looks at every rule, each by itself, and makes its next move."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from salvor import clock
from salvor.change import Finding, Level
from salvor.errors import HeldError, SalvorError
from salvor.inventory import Platform
from salvor.secrets import mask
from salvor.show import Shown
from salvor.watch import acknowledgement, moves
from salvor.watch.actions import RECOVER
from salvor.watch.alerts import Alerts
from salvor.watch.chain import Move, comes_back, in_spite_of, left_to_people, looks_back, next_move
from salvor.watch.episode import Episodes, Told, is_under_way, open_one, write_held
from salvor.watch.kept import Kept
from salvor.watch.metrics import Metrics, Reading
from salvor.watch.recoveries import unfinished
from salvor.watch.sighting import APART, Sighting


@dataclass(frozen=True)
class Seen:
    """One look at a rule: what was read, for how long it has been so, its episodes, and the move that follows."""

    rule: str
    reading: Reading
    sighting: Sighting
    episodes: list[Told]
    move: Move

    @property
    def open(self) -> Told | None:
        """The episode that is open; None when none is."""
        return open_one(self.episodes)

    def finding(self) -> Finding:
        """What was seen, for the journal and for people."""
        level = {True: Level.FAIL, False: Level.PASS, None: Level.UNKNOWN}[self.reading.bad]
        return Finding(self.rule, "metric", level, self.reading.figure, self.reading.limit, self.reading.detail)


class Watcher:
    """Looks at the rules of a platform. Of two at once, only one may `look`: who has the lock."""

    def __init__(self, platform: Platform, shown: Shown, still_ours: Callable[[], None] = lambda: None) -> None:
        self.platform, self.shown = platform, shown
        self.lost: HeldError | None = None
        """Why the watch is not ours any more, when another machine took it over."""
        self._still_ours = still_ours
        self.alerts = Alerts(platform.name, shown.tell)
        self.is_deaf = False
        """Whether Alertmanager cannot post to this watch."""
        self.stopping = threading.Event()
        self.wake = threading.Event()
        self._metrics = Metrics(platform, self.alerts)
        self._episodes = Episodes(platform.name)
        self._kept = {name: Kept(platform.name, name, shown.tell) for name in platform.watch}
        self._sightings = {name: Sighting.from_json(kept.read()) for name, kept in self._kept.items()}
        self._deaf_until: dict[str, datetime | None] = {}
        """For each rule of an alert, until when nobody listened, for too long; None where somebody did."""
        self._written = dict(self._sightings)
        self._said: dict[str, str] = {}
        self._hindered: dict[str, str] = {}

    # --- look ----------------------------------------------------------------------------------------------------

    def see(self, name: str) -> Seen:
        """Read a rule's metric, and decide what follows. Nothing is written."""
        rule = self.platform.watch[name]
        episodes = self._episodes.of(name, looks_back(rule))
        reading = self._metrics.read(rule)
        if rule.metric.alert:
            reading = self._of_that_alert(name, reading, episodes)
        sighting = self._sightings[name].after(reading.bad, rule.for_)
        escalation = self.platform.escalation.get(rule.escalate or "")
        move = next_move(rule, escalation, episodes, sighting, reading)
        if move.kind == "act" and not is_under_way(episodes, move.stage, RECOVER):  # that is a recovery itself
            systems = {action.system for action in rule.actions(move.stage) if action.system}
            if recovery := unfinished(self.platform.name, rule.service, systems):
                move = left_to_people(rule, recovery)
        return Seen(name, reading, sighting, episodes, move)

    def _of_that_alert(self, name: str, reading: Reading, episodes: list[Told]) -> Reading:
        """What is read of an alert, of which an episode may be open: that it ended may not have been said to us."""
        if self.is_deaf:
            return Reading(None, "cannot tell", "", "this watch does not listen to Alertmanager (--alertmanager)")
        rule, before, told = self.platform.watch[name], self._sightings[name], open_one(episodes)
        alert, labels = rule.metric.alert or "", rule.metric.labels
        deaf_until = clock.now() if before.is_old(rule.for_) else before.unknown_since
        deaf_until = self._deaf_until.setdefault(name, deaf_until)  # from then on this process listens
        unheard = Reading(None, "cannot tell", "", "Alertmanager has not said to this watch whether it still fires")
        if reading.bad:
            heard_at = self.alerts.heard_at(alert, labels)
            if deaf_until and (heard_at is None or heard_at < deaf_until - timedelta(seconds=APART)):
                return unheard
        elif told and (told.is_taken or not self.alerts.is_known) and not self.alerts.is_heard_of(alert, labels):
            return unheard
        anew_at = self.alerts.fires_anew_at(alert, labels)
        if told and reading.bad and anew_at and told.since < anew_at and not comes_back(rule, episodes):
            said = "Alertmanager says that it fires anew, and did not say when it had ended"
            return Reading(False, "it had ended", "", said)
        return reading

    def look(self, name: str) -> Seen:
        """One look at a rule, and its next move. What hinders the move is said, and tried again at the next look."""
        acknowledgement.take(self.platform.name, name, self._tell)
        with suppress(SalvorError):
            write_held(name, self._tell)
        seen = self.see(name)
        self._sightings[name] = seen.sighting
        if seen.sighting.is_worth_keeping_after(self._written[name]):
            self._kept[name].write(seen.sighting.to_json())
            self._written[name] = seen.sighting
        self._say(seen)
        try:
            if seen.move.kind != "wait":
                self._still_ours()
        except HeldError as error:
            self.lost = error
            self.stop()
            return seen
        seen, hindered = self._make(seen)
        if hindered and hindered != self._hindered.get(name):
            self._tell(hindered)
        self._hindered[name] = hindered
        return seen

    def _make(self, seen: Seen) -> tuple[Seen, str]:
        """Make the move, or in spite of what hinders it another one, which is then in what is returned. What hinders
        it, in words.
        """
        try:
            moves.make(self.platform, seen, self.shown, self.stopping)
            return seen, ""
        except SalvorError as error:
            waits = "waits" if isinstance(error, HeldError) else f"{seen.move.kind} failed, and is tried again"
            hindered = f"{seen.rule}: {waits}: {error.what}"
            move = in_spite_of(error, self.platform.watch[seen.rule], seen.move, seen.sighting)
        if move is None:
            return seen, hindered
        instead = replace(seen, move=move)
        self._say(instead)
        try:
            moves.make(self.platform, instead, self.shown, self.stopping, holding=False)
        except SalvorError as error:
            return instead, f"{hindered}; and {move.kind}: {error.what}"
        return instead, ""

    def _say(self, seen: Seen) -> None:
        """What is new: a rule that goes on as it did says nothing."""
        state = seen.move.kind if seen.move.kind != "wait" else seen.move.why.split(" for ")[0]
        if self._said.get(seen.rule, "good") != state:
            figure = seen.reading.figure + (f" (limit {seen.reading.limit})" if seen.reading.limit else "")
            parts = (f"{clock.now():%H:%M:%SZ} {seen.rule}", figure, seen.reading.detail, seen.move.why)
            self._tell(": ".join(part.rstrip(".") for part in parts if part))
        self._said[seen.rule] = state

    def _tell(self, text: str) -> None:
        self.shown.tell(mask(text))

    # --- again and again -----------------------------------------------------------------------------------------

    def once(self) -> list[Seen]:
        """One look at every rule, side by side, and their moves."""
        return self._each(self.look)

    def see_all(self) -> list[Seen]:
        """What every rule sees now, and what it would do next. Nothing is written."""
        return self._each(self.see)

    def _each(self, work: Callable[[str], Seen]) -> list[Seen]:
        with self._pool() as pool:
            return list(pool.map(work, self.platform.watch))

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=max(1, len(self.platform.watch)), thread_name_prefix="watch")

    def loop(self, every: float, on_error: Callable[[BaseException], None]) -> None:
        """Look every so many seconds, at once when `wake` is set, until `stopping` is. A rule that is still being
        looked at, or acts, holds no other one up; it is looked at again when that is done.
        """
        busy: dict[str, Future[Seen]] = {}
        passed_over: set[str] = set()

        def ended(name: str, future: Future[Seen]) -> None:
            error = future.exception()
            if error:
                on_error(error)
            if name in passed_over:
                passed_over.discard(name)
                self.wake.set()

        with self._pool() as pool:
            while not self.stopping.is_set():
                self.wake.clear()
                for name in self.platform.watch:
                    if name in busy and not busy[name].done():
                        passed_over.add(name)
                        if not busy[name].done():
                            continue
                    passed_over.discard(name)
                    busy[name] = pool.submit(self.look, name)
                    busy[name].add_done_callback(partial(ended, name))
                self.wake.wait(every)
            if left := [name for name, future in busy.items() if not future.done()]:
                self._tell(
                    f"The watch ends when what is begun is done: {', '.join(left)}. A second signal ends it at once; "
                    "what it started on a machine may go on there, and the next watch runs it no second time."
                )
            wait(busy.values())

    def stop(self) -> None:
        """End the loop: what is being changed is brought to its end, and nothing else is begun."""
        self.stopping.set()  # before the other: whoever is woken finds it
        self.wake.set()
