"""Between incidents: back up, list what could be restored, drill, and become redundant again."""

from __future__ import annotations

from invoke.context import Context

from salvor.commands import command


@command()
def protect(
    c: Context,
    service: str = "",
    platform: str = "",
    plan: bool = False,
    approve: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """After a recovery: rebuild standbys that no longer follow, and back up what is live now."""
    from salvor import maintenance, show

    maintenance.protect(service, platform, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


@command(kind="full, diff, incr (pgBackRest), dump, snapshot (restic), or archive: one file of all that shares it")
def backup(c: Context, service: str = "", kind: str = "incr", platform: str = "", json: bool = False) -> None:
    """Back a service up, with a fingerprint of its contents."""
    from salvor import maintenance, show

    maintenance.backup(service, platform, kind, show.choose(as_json=json))


@command(
    optional=("prometheus",),
    service="the service, as the inventory names it (with --check, the default is all)",
    check="look for what is wrong with them, of one service or of all; exit code 6: failed, 8: warns",
    deep="with --check: read every byte of them (checksums, pgbackrest verify, restic check --read-data)",
    prometheus="with --check: print metrics in its text format; --prometheus=FILE writes them, of all services",
)
def backups(
    c: Context,
    service: str = "",
    platform: str = "",
    check: bool = False,
    deep: bool = False,
    prometheus: str = "",
    json: bool = False,
) -> None:
    """List the backups: age, size, window, last proof, against the service's RPO; or --check them."""
    from salvor import maintenance, show
    from salvor.backups import report as backup_report

    shown = show.choose(as_json=json)
    if check or deep or prometheus:
        backup_report.report(service, platform, shown, deep=deep, prometheus=prometheus)
    else:
        maintenance.backups(service, platform, shown)


@command(service="only this service (default: all)")
def retention(
    c: Context,
    service: str = "",
    platform: str = "",
    plan: bool = False,
    approve: str = "",
    yes: bool = False,
    json: bool = False,
) -> None:
    """Say of each backup (of a service, or all) why it stays, then remove those that the policy (keep:) lets go."""
    from salvor import show
    from salvor.backups import retention_work

    retention_work.carry_out(service, platform, show.choose(as_json=json), plan_only=plan, approve=approve, yes=yes)


@command(
    keep="leave the stand-in standing after the drill",
    scenario="which disaster of the sandbox, or `every` one after another (empty: a wrong statement restored from "
    "backup, then a dead primary failed over); elsewhere the way back to rehearse (empty: the best that is open); "
    "`rehearsal`: break nothing, also where a stand-in is",
)
def drill(
    c: Context,
    service: str = "",
    scenario: str = "",
    platform: str = "",
    keep: bool = False,
    json: bool = False,
) -> None:
    """Break a stand-in (sandbox; all of o4o) and bring it back; one service, or elsewhere: restore beside, prove."""
    from salvor import show
    from salvor.drill import scenes as drill

    drill.run(service, platform, scenario, show.choose(as_json=json), keep=keep)


TASKS = (protect, backup, backups, retention, drill)
