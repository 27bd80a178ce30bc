"""What all incidents and drills of a platform show over time, from their journals alone.

- Attainment: of the recoveries of incidents and drills in which a figure was measured, how many met its target of that
  time (ISO 22301 calls the targets RTO and RPO).
- Time to detect (MTTD): from the failure to its detection, the mean of the incidents of which it is known when they
  failed. Time to recover (MTTR): from detection to the first good check through the route, the mean of the incidents
  that recovered. (NIST SP 800-61 names the phases; the words are those of ITIL's practice of incident management.)
- Downtime: from the failure (from the detection, where it is not known) to the first good check; of an incident that
  was ended without one, to its end; of one that is open, to now. What overlaps counts once. Drills break nothing that
  users reach, so neither they nor maintenance count.
- Availability: 1 - downtime / period (ITU-T E.800). A period counts whole, the one of now up to now.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from salvor import clock, inventory
from salvor.errors import SalvorError, UsageError
from salvor.journal import brief
from salvor.journal.brief import Brief
from salvor.journal.folders import incidents_folder

PERIODS = {"month": 1, "quarter": 3, "year": 12}
"""How many months each has."""

STEPS = ("assess", "notify", "isolate", "restore", "verify", "reroute")
"""The order in which steps are told."""

Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class Period:
    """A month, quarter or year by UTC: `2026-11`, `2026-Q4`, `2026`. `until` is not later than now."""

    name: str
    begin: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.until - self.begin).total_seconds()


@dataclass(frozen=True)
class Share:
    """How many of those that were measured met their target."""

    met: int
    measured: int

    @property
    def percent(self) -> float | None:
        """In percent; None when none was measured."""
        return 100.0 * self.met / self.measured if self.measured else None

    @property
    def said(self) -> str:
        """`97.5 % of 40`, or `-` where nothing was measured."""
        return "-" if self.percent is None else f"{write_percent(self.percent, 1)} of {self.measured}"


@dataclass(frozen=True)
class Figures:
    """A service's figures of a period, or those of all services (`service` is empty): then `downtime` is their sum, and
    `availability` their mean. Times are means, in seconds; `availability` is between 0 and 1, `allowed` the downtime
    that the promise to users leaves (None: none is given).
    """

    period: Period
    service: str
    incidents: int
    drills: int
    rto_met: Share
    rpo_met: Share
    detect: float | None
    recover: float | None
    downtime: float
    availability: float
    allowed: float | None = None

    @property
    def is_promise_kept(self) -> bool | None:
        """Whether the downtime stayed within what was promised; None when nothing was."""
        return None if self.allowed is None else self.downtime <= self.allowed

    @property
    def available(self) -> str:
        """The availability in percent, for people."""
        return write_percent(100.0 * self.availability, 3)


@dataclass(frozen=True)
class StepTrend:
    """A step in all runs that came to its end: seconds; `latest` is the median of the last period that has any."""

    name: str
    count: int
    median: float
    worst: float
    latest: float
    latest_period: str


@dataclass(frozen=True)
class Trends:
    """The trends of a platform, the oldest period first. `all` has a period each, `services` a service and period."""

    platform: str
    by: str
    all: tuple[Figures, ...]
    services: tuple[Figures, ...]
    steps: tuple[StepTrend, ...]
    journals: int
    unreadable: int

    @property
    def newest_first(self) -> list[Figures]:
        """Each service and period, the newest period first."""
        return sorted(self.services, key=lambda each: each.period.begin, reverse=True)

    @property
    def now(self) -> list[Figures]:
        """Each service in the period of now."""
        return [each for each in self.services if each.period == self.all[-1].period] if self.all else []


def write_percent(value: float, digits: int) -> str:
    """Rounded down, so that only what is whole is called so: `100 %`, `99.998 %`."""
    whole = math.floor(value * 10**digits + 1e-6) / 10**digits
    return "100 %" if whole == 100.0 else f"{whole:.{digits}f} %"


def of(platform: str, service: str = "", by: str = "month") -> Trends:
    """The trends of a platform, or of one of its services. Raises UsageError for a period that is none."""
    if by not in PERIODS:
        raise UsageError(f"--by: {by!r} is no period.", hint=f"one of {', '.join(PERIODS)}")
    return reckon(brief.newest_first(incidents_folder(), platform), platform, promises(platform), service, by)


def promises(platform: str) -> dict[str, float | None]:
    """The availability in percent that each service of the inventory promises; empty when that cannot be read: what
    was stays true without it.
    """
    try:
        return {name: service.availability for name, service in inventory.load(platform).services.items()}
    except SalvorError:
        return {}


def reckon(
    briefs: Iterable[Brief | None],
    platform: str,
    promised: Mapping[str, float | None],
    service: str = "",
    by: str = "month",
) -> Trends:
    """The trends that these journals show; `service` limits them to one."""
    runs: list[Brief] = []
    unreadable = 0
    for each in briefs:
        if each is None:
            unreadable += 1
        elif each.purpose in ("incident", "drill") and service in ("", each.service):
            runs.append(each)
    if not runs:
        return Trends(platform, by, (), (), (), 0, unreadable)
    now = clock.now()
    periods = _periods(min(run.detected_at for run in runs), now, PERIODS[by])
    groups: dict[tuple[str, str], list[Brief]] = defaultdict(list)
    for run in runs:
        for name in (run.service, ""):
            groups[_name(run.detected_at, PERIODS[by]), name].append(run)
    names = [service] if service else sorted({run.service for run in runs} | promised.keys())
    down = {name: _downtime(name, runs, now) for name in names}
    figures = [
        _figures(period, name, groups[period.name, name], _within(down[name], period), promised.get(name))
        for period in periods
        for name in names
    ]
    together = [
        _figures(
            period,
            "",
            groups[period.name, ""],
            sum(each.downtime for each in figures if each.period is period),
            services=len(names),
        )
        for period in periods
    ]
    return Trends(platform, by, tuple(together), tuple(figures), tuple(_steps(groups, periods)), len(runs), unreadable)


def _figures(
    period: Period,
    service: str,
    runs: Sequence[Brief],
    downtime: float,
    promised: float | None = None,
    *,
    services: int = 1,
) -> Figures:
    incidents = [run for run in runs if run.purpose == "incident"]
    detect = [(run.detected_at - run.failed_at).total_seconds() for run in incidents if run.failed_at]
    recover = [(run.good_at - run.detected_at).total_seconds() for run in incidents if run.good_at]
    return Figures(
        period,
        service,
        len(incidents),
        len(runs) - len(incidents),
        _share(runs, "rto"),
        _share(runs, "rpo"),
        statistics.fmean(max(0.0, each) for each in detect) if detect else None,
        statistics.fmean(recover) if recover else None,
        downtime,
        1.0 - downtime / (period.seconds * services) if period.seconds else 1.0,
        period.seconds * (100.0 - promised) / 100.0 if promised is not None else None,
    )


def _share(runs: Sequence[Brief], figure: str) -> Share:
    verdicts = [verdict for run in runs if (verdict := run.is_met(figure)) is not None]
    return Share(sum(verdicts), len(verdicts))


def _steps(groups: Mapping[tuple[str, str], Sequence[Brief]], periods: Sequence[Period]) -> Iterator[StepTrend]:
    took: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for period in periods:
        for run in groups.get((period.name, ""), ()):
            for step, seconds in run.steps.items():
                took[step].setdefault(period.name, []).append(seconds)
    order = {name: number for number, name in enumerate(STEPS)}
    for step in sorted(took, key=lambda name: (order.get(name, len(order)), name)):
        every = [seconds for group in took[step].values() for seconds in group]
        name, latest = list(took[step].items())[-1]
        yield StepTrend(step, len(every), statistics.median(every), max(every), statistics.median(latest), name)


# ------------------------------------------------------------------------------------------------ periods


def _name(at: datetime, months: int) -> str:
    if months == 12:
        return f"{at.year}"
    return f"{at:%Y-%m}" if months == 1 else f"{at.year}-Q{(at.month - 1) // months + 1}"


def _periods(first: datetime, now: datetime, months: int) -> list[Period]:
    """Every period from the one that `first` is in to the one of now."""
    begin = datetime(first.year, (first.month - 1) // months * months + 1, 1, tzinfo=UTC)
    found = []
    while begin <= now:
        following = begin.month - 1 + months
        end = datetime(begin.year + following // 12, following % 12 + 1, 1, tzinfo=UTC)
        found.append(Period(_name(begin, months), begin, min(end, now)))
        begin = end
    return found


def _downtime(service: str, runs: Sequence[Brief], now: datetime) -> list[Span]:
    """When a service was down, the earliest first, without overlaps."""
    spans = (_down(run, now) for run in runs if run.service == service and run.purpose == "incident")
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _down(run: Brief, now: datetime) -> Span:
    begin = min(run.failed_at or run.detected_at, run.detected_at)
    ended = min((at for kind, at in run.marks.items() if kind in brief.OVER), default=now)
    return begin, run.good_at or ended


def _within(spans: Iterable[Span], period: Period) -> float:
    """Seconds of these spans that lie in a period."""
    inside = ((max(begin, period.begin), min(end, period.until)) for begin, end in spans)
    return sum((end - begin).total_seconds() for begin, end in inside if begin < end)
