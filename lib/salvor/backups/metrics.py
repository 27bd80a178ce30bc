"""What was found of backups, as figures for Prometheus. The rules that alert on them: monitoring/salvor.rules.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from salvor.backups import checks as backup_checks
from salvor.backups.report import Looked
from salvor.backups.retention import is_good
from salvor.change import Backup, Level
from salvor.prometheus import Metric

_LEVELS = {Level.PASS: 0.0, Level.WARN: 1.0, Level.FAIL: 2.0, Level.UNKNOWN: 3.0}
_Values = Iterable[tuple[Sequence[str], float]]


def metrics(platform: str, looks: Sequence[Looked], at: datetime) -> list[Metric]:
    """Every figure of a look at `at`."""

    def gauge(name: str, meaning: str, labels: str, values: _Values) -> Metric:
        names = ("platform", *labels.split())
        samples = [(dict(zip(names, (platform, *key), strict=True)), value) for key, value in values]
        return Metric(f"salvor_backup_{name}", meaning, samples)

    def of(values: Iterable[tuple[Looked, float | None]]) -> _Values:
        return [((one.system,), value) for one, value in values if value is not None]

    good = [(one, [each for each in one.backups if is_good(each)]) for one in looks]
    kinds = [(one, ordered) for one, backups in good for ordered in _by_kind(backups)]
    compared = [(one, ordered) for one, backups in good for ordered in backup_checks.series(backups).values()]
    rooms = [((one.system, room.repository, room.path), room) for one in looks for room in one.rooms]
    series = "system repository kind"
    return [
        gauge("checked_timestamp_seconds", "When the backups were looked at.", "", [((), at.timestamp())]),
        gauge(
            "check",
            "What a check found at worst: 0 ok, 1 warning, 2 failed, 3 not known.",
            "system check",
            _levels(looks),
        ),
        gauge(
            "restorable_timestamp_seconds",
            "The newest moment that can be restored.",
            "system",
            of((one, _time(backup_checks.newest_point(one.backups))) for one in looks),
        ),
        gauge(
            "rpo_seconds",
            "How much of the newest data may be lost.",
            "system",
            of((one, one.known.rpo) for one in looks),
        ),
        gauge(
            "oldest_seconds",
            "How old the newest backup may be.",
            "system",
            of((one, one.known.expect.oldest) for one in looks),
        ),
        gauge(
            "smallest_bytes",
            "How small the newest backup may be.",
            "system",
            of((one, one.known.expect.smallest) for one in looks),
        ),
        gauge(
            "proven_timestamp_seconds",
            "When a restore of one of its backups was last proven.",
            "system",
            of((one, _time(max((b.proven for b in one.backups if b.proven), default=None))) for one in looks),
        ),
        gauge(
            "newest_timestamp_seconds",
            "When the newest usable backup was taken.",
            series,
            [(_key(one, all_[0]), all_[0].taken.timestamp()) for one, all_ in kinds],
        ),
        gauge(
            "usable",
            "How many usable backups there are.",
            series,
            [(_key(one, all_[0]), len(all_)) for one, all_ in kinds],
        ),
        gauge(
            "newest_size_bytes",
            "The size of the newest usable backup, where its engine says it.",
            series,
            [(_key(one, all_[0]), all_[0].size) for one, all_ in compared if all_[0].size],
        ),
        gauge(
            "median_size_bytes",
            "The median size of those before the newest one.",
            series,
            [
                (_key(one, all_[0]), median)
                for one, all_ in compared
                if (median := backup_checks.median_before(all_)) is not None
            ],
        ),
        gauge(
            "repository_free_bytes",
            "What is free where a repository lies.",
            "system repository path",
            [(key, room.free) for key, room in rooms],
        ),
        gauge(
            "repository_size_bytes",
            "How large the file system is where a repository lies.",
            "system repository path",
            [(key, room.size) for key, room in rooms],
        ),
    ]


def _levels(looks: Sequence[Looked]) -> _Values:
    return [
        ((one.system, check), _LEVELS[min(levels, key=lambda level: backup_checks.ORDER[level])])
        for one in looks
        for check in backup_checks.CHECKS
        if (levels := [each.level for each in one.findings if each.check == check])
    ]


def _by_kind(backups: Sequence[Backup]) -> list[list[Backup]]:
    """The backups of each repository and kind, newest first."""
    found: dict[tuple[str, str], list[Backup]] = {}
    for one in sorted(backups, key=lambda one: one.taken, reverse=True):
        found.setdefault((one.repository, one.kind), []).append(one)
    return list(found.values())


def _key(one: Looked, backup: Backup) -> tuple[str, str, str]:
    return one.system, backup.repository, backup.kind


def _time(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
