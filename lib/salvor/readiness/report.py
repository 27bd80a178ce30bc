"""The readiness of a platform's services: looked at now, and kept as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salvor import clock, inventory
from salvor.inventory import Platform, Service
from salvor.journal import brief
from salvor.journal.brief import Brief
from salvor.journal.folders import incidents_folder
from salvor.readiness import expected, looks, rules
from salvor.readiness.expected import Expected
from salvor.readiness.looks import Drift, Newest, Seen
from salvor.readiness.rules import Facts, Proof, Reason
from salvor.secrets import mask_data

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Row:
    """One service. Times are UTC, durations in seconds; `loses` is the RPO of now, None when it cannot be told."""

    service: str
    title: str
    tier: int
    verdict: str
    reasons: tuple[Reason, ...]
    backups: tuple[Newest, ...]
    proofs: tuple[Proof, ...]
    expected: Expected | None
    rto: float
    loses: float | None
    rpo: float
    needs: Mapping[str, str]
    drift: tuple[Drift, ...]

    @property
    def proof(self) -> Proof | None:
        """The oldest of its systems' last proofs; one that never was comes first. None: it has no data to restore."""
        return min(self.proofs, key=lambda proof: proof.at.timestamp() if proof.at else 0.0, default=None)

    @property
    def backup(self) -> Newest | None:
        """The oldest of its systems' newest usable backups; one that is missing comes first."""
        return max(self.backups, key=lambda each: (not each.id, each.taken_seconds_ago), default=None)

    @property
    def told_backup(self) -> str:
        """The newest usable backup in words."""
        if self.backup is None:
            return "no data"
        if not self.backup.id:
            return "none" if self.backup.can_tell else "cannot tell"
        return f"{self.backup.kind} {self.backup.id}, {clock.write_duration(self.backup.taken_seconds_ago)} old"

    @property
    def told_proof(self) -> str:
        """The last proven restore in words."""
        if self.proof is None:
            return "no data"
        if self.proof.at is None:
            return "never"
        return f"{clock.write_duration(self.proof.seconds_ago)} ago, {self.proof.purpose}"


@dataclass(frozen=True)
class Report:
    """The services of a platform as they were at `looked_at`, in the order in which they would be brought back."""

    platform: str
    title: str
    looked_at: datetime
    rows: tuple[Row, ...]
    service: str = ""
    """The one that was asked for, with what it depends on; empty: all."""

    @property
    def most_runs(self) -> int:
        """How many runs of a service are reckoned with at most."""
        return expected.MOST_RUNS

    def count(self, verdict: str) -> int:
        """How many services have this verdict."""
        return sum(row.verdict == verdict for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data, masked."""
        data: dict[str, Any] = mask_data(_adapter().dump_python(self, mode="json"))
        return data


def folder(platform: str, service: str = "") -> Path:
    """Where the reports of a platform are kept, among the incidents; those of one service are in a folder of theirs."""
    return incidents_folder() / f"readiness-{platform}" / service


def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


# ------------------------------------------------------------------------------------------------ looking


def look(platform: str, service: str = "", briefs: Iterable[Brief | None] | None = None) -> Report:
    """Look at the services of a platform, or at one and what it depends on. Raises UsageError when there is none.

    `briefs` are those of its journals, the newest first (None: they are read).
    """
    described = inventory.load(platform)
    services = [*_needs(described, described.service(service))] if service else described.in_order()
    seen = looks.look(described, services)
    runs = _runs(described, brief.newest_first(incidents_folder(), platform) if briefs is None else briefs)
    rows: dict[str, Row] = {}
    for one in services:
        rows[one.name] = _row(described, one, seen, runs.get(one.name, []), rows)
    return Report(described.name, described.title, clock.now(), tuple(rows.values()), service)


def _needs(platform: Platform, service: Service) -> list[Service]:
    """A service after all that it depends on."""
    needed = {service.name}
    order = platform.in_order()
    for one in reversed(order):
        if one.name in needed:
            needed |= set(one.depends_on)
    return [one for one in order if one.name in needed]


def _runs(platform: Platform, briefs: Iterable[Brief | None]) -> dict[str, list[Brief]]:
    """The incidents and drills of each service, the newest first."""
    found: dict[str, list[Brief]] = {name: [] for name in platform.services}
    for each in briefs:
        if each and each.service in found and each.purpose in ("incident", "drill"):
            found[each.service].append(each)
    return found


def _row(platform: Platform, service: Service, seen: Seen, runs: Sequence[Brief], before: Mapping[str, Row]) -> Row:
    names = looks.parts(service)
    backups = tuple(seen.backups[name] for name in service.systems if name in seen.backups)
    ways = {each.system: each.way for each in backups if each.id} or dict.fromkeys(service.applications, "start")
    facts = Facts(
        service,
        platform.name,
        {name: seen.states[name] for name in names},
        backups,
        tuple(_proof(each, runs) for each in backups),
        expected.reckon(runs, ways, sum(each.size for each in backups)),
        tuple(dict.fromkeys(drift for name in names for drift in seen.drift[name])),
        {name: before[name].verdict for name in service.depends_on},
        tuple((run.incident, run.purpose) for run in runs if not run.is_over and "recovered" not in run.marks),
        tuple((run.incident, what) for run in runs if not run.is_over for what in run.owed),
        _proof_ages(platform, service),
    )
    reasons = rules.judge(facts)
    return Row(
        service.name,
        service.title or service.name,
        service.tier,
        rules.verdict(reasons),
        reasons,
        backups,
        facts.proofs,
        facts.expected,
        service.rto,
        facts.loses,
        service.rpo,
        facts.needs,
        facts.drift,
    )


def _proof(newest: Newest, runs: Iterable[Brief]) -> Proof:
    """The newest proof of a system."""
    run, at, failed = brief.last_proof(newest.system, newest.way, runs)
    if run is None or at is None:
        return Proof(newest.system, failed=failed)
    return Proof(newest.system, at, clock.age(at).total_seconds(), run.incident, run.purpose, failed)


def _proof_ages(platform: Platform, service: Service) -> dict[str, float]:
    """Seconds for which a proof of a system holds, where the inventory says so."""
    policies = {name: getattr(platform.settings[name], "expect", None) for name in service.systems}
    return {name: policy.proven for name, policy in policies.items() if policy and policy.proven}
