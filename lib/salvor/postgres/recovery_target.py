"""The moment that a recovery is to end at, as pgBackRest and PostgreSQL read it."""

from __future__ import annotations

from datetime import UTC, datetime

from salvor import clock


def write_target_time(moment: datetime) -> str:
    """A time as PostgreSQL's recovery_target_time reads it, whatever the server's time zone is."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00"


def recovery_options(target: str, timeline: int, begins_on: int) -> list[str]:
    """pgBackRest's options for `latest`, `immediate`, `time:...`, `before:...` (exclusive), `name:...`, `lsn:...`, or
    `before-lsn:...` (exclusive), from a backup of the timeline `begins_on`.

    Named by its number a timeline needs its history file, which a repository that was begun anew does not have.
    """
    kind, _, value = target.partition(":")
    along = f"--target-timeline={'current' if timeline == begins_on else timeline}"
    match kind:
        case "latest":
            return ["--type=standby", along]
        case "immediate":
            return ["--type=immediate", "--target-action=pause"]
        case "time" | "before":
            moment = write_target_time(clock.read_time(value, argument="--at"))
            exclusive = ["--target-exclusive"] if kind == "before" else []
            return ["--type=time", f"--target={moment}", *exclusive, "--target-action=pause", along]
        case "before-lsn":
            return ["--type=lsn", f"--target={value}", "--target-exclusive", "--target-action=pause", along]
        case _:
            return [f"--type={kind}", f"--target={value}", "--target-action=pause", along]
