"""Which backups stay, and why: a policy of so many days, weeks, months and years. It only decides; engines remove."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

from salvor import clock
from salvor.backups.policy import Keep
from salvor.change import NEWEST, Backup, Verdict

PROVEN = "last proven"
COPIES = 2
"""So many other repositories have what the own policy of one repository lets go."""


def is_ahead(backup: Backup) -> bool:
    """Whether it is of a time to come: the clock where it was made was wrong then, or ours is now."""
    return clock.is_to_come(backup.taken)


def is_good(backup: Backup) -> bool:
    """Whether it can be restored, and is of no time to come."""
    return backup.usable and not is_ahead(backup)


def _month(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month


_PERIODS: dict[str, Callable[[datetime], tuple[int, ...]]] = {
    "daily": lambda moment: (*_month(moment), moment.day),
    "weekly": lambda moment: moment.isocalendar()[:2],
    "monthly": _month,
    "yearly": lambda moment: (moment.year,),
}


def decide(
    backups: Iterable[Backup],
    keep: Keep,
    own: Mapping[str, Keep] = MappingProxyType({}),
    near: Collection[str] = frozenset(),
) -> list[Verdict]:
    """The verdict on each backup, newest first; each repository is counted by itself, by its `own`
    policy if it has one.

    Whatever the policy says, these stay: the newest good one, the newest one of which a restore was proven, what
    another one that stays needs, what is on hold, and a damaged one as long as nothing newer is good. What only the
    own policy of a repository lets go stays until COPIES other repositories have it. Of the repositories that are
    `near` what is live, nothing goes while fewer than two have the newest backup.
    """
    ways: dict[str, list[Backup]] = defaultdict(list)
    for backup in sorted(backups, key=lambda one: (one.taken, one.id), reverse=True):
        ways[backup.way].append(backup)
    found = [verdict for each in ways.values() for verdict in _by_repository(each, keep, own, near)]
    return sorted(found, key=lambda one: (one.backup.taken, one.backup.id), reverse=True)


def _by_repository(
    backups: Sequence[Backup], keep: Keep, own: Mapping[str, Keep], near: Collection[str]
) -> list[Verdict]:
    """The verdicts on the backups of one way back; newest first, as they came."""
    holders: dict[datetime, set[str]] = defaultdict(set)  # one run gives every repository the same moment
    for one in backups:
        if one.usable:
            holders[one.taken].add(one.repository)
    wanted = {one.backup.taken for one in _decide(backups, keep) if one.stays} if own else set()
    good = [one for one in backups if is_good(one)]
    have_newest = {one.repository for one in good if one.taken == good[0].taken}
    alone = f"only {', '.join(have_newest) or 'nothing'} has the newest, and two must"
    found = []
    for repository in dict.fromkeys(one.repository for one in backups):
        of_it = [one for one in backups if one.repository == repository]
        spared = {one.id: alone for one in of_it} if repository in near and len(have_newest) < 2 else {}
        if repository not in own:
            found += _decide(of_it, keep, spared)
            continue
        for one in of_it:
            others = len(holders[one.taken] - {repository})
            if one.taken in wanted and others < COPIES:
                spared[one.id] = f"{others} of {COPIES} other repositories have it"
        found += _decide(of_it, own[repository], spared)
    return found


def _decide(ordered: Sequence[Backup], keep: Keep, spared: Mapping[str, str] = MappingProxyType({})) -> list[Verdict]:
    """The verdicts on the backups of one repository, newest first; `spared` are more reasons to stay, by id."""
    good = [one for one in ordered if is_good(one)]
    reasons: dict[str, list[str]] = {one.id: [] for one in ordered}
    for newest in good[:1]:
        reasons[newest.id].append(NEWEST)
    for name, period in _PERIODS.items():
        seen: list[tuple[int, ...]] = []
        for one in good:
            if len(seen) < getattr(keep, name) and (of := period(one.taken.astimezone(UTC))) not in seen:
                seen.append(of)
                reasons[one.id].append(f"{name} {len(seen)}")
    for proven in [one for one in good if one.proven][:1]:
        reasons[proven.id].append(PROVEN)
    for one in ordered:
        if is_ahead(one):
            reasons[one.id].append("of a time to come")
        if one.hold:
            reasons[one.id].append(one.hold)
        if not one.usable and not (good and good[0].taken > one.taken):
            reasons[one.id].append("nothing newer is good")
    for one in ordered:
        if not reasons[one.id] and one.id in spared:
            reasons[one.id].append(spared[one.id])
    for one in ordered:
        if reasons[one.id]:
            _keep_what_it_needs(one, ordered, reasons)
    return [Verdict(one, tuple(reasons[one.id])) for one in ordered]


def _keep_what_it_needs(one: Backup, known: Sequence[Backup], reasons: dict[str, list[str]]) -> None:
    """Keep what a backup that stays is built on, to the last one."""
    for other in known:
        if other.id in one.needs and not any(reason.startswith("needed by") for reason in reasons[other.id]):
            reasons[other.id].append(f"needed by {one.id}")
            _keep_what_it_needs(other, known, reasons)


def together(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts of several systems on what may be the same file, such as an archive that holds both: what stays for one
    of them stays for each.
    """
    kept = {(one.backup.location, one.backup.id): one.backup.system for one in verdicts if one.stays}

    def of(one: Verdict) -> Verdict:
        other = kept.get((one.backup.location, one.backup.id))
        if one.stays or other in (None, one.backup.system):
            return one
        return replace(one, reasons=(f"{other} keeps it",))

    return [of(one) for one in verdicts]
