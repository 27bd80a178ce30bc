"""What an operator types, checked: times, targets, sources, overrides. An error names the argument, what is wrong,
and the mend.
"""

from __future__ import annotations

import re
from datetime import datetime

from salvor import clock
from salvor.errors import UsageError
from salvor.wish import FENCE_MACHINE, RESTORE_WHOLE_CLUSTER, Wish

OVERRIDES = {
    "promote-without-fence": "promote a standby although nothing shows that the old primary cannot write any more",
    "accept-missing-wal": "restore the newest state although the archive lacks WAL: its commits are lost",
    RESTORE_WHOLE_CLUSTER: "take the other databases of the cluster back, too, although they work",
    f"{FENCE_MACHINE}:NAME": "cut the machine NAME of the inventory off from everybody, with all that is on it",
    "trust-dump": "let a dump do what only a superuser can: whoever made it is known",
    "trust-archive": "take links out of the tree, line breaks in names and any ratio: whoever made it is known",
}
"""The deviations that an operator may name, and what each means."""

_LSN = re.compile(r"lsn:[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
_POINT = re.compile(r"name:[\x20-\x7e]{1,63}")
_REASON = 8
_NOT_IN_SOURCE = re.compile(r"[\x00-\x1f\x7f]")

_WHERE_LISTED = {
    "incident": "add --incident=ID; inv incidents lists them",
    "episode": "add --episode=ID; inv watch.show names them",
    "service": "add --service=NAME; inv assess --platform=NAME lists them",
    "limit": "add --limit=NAME; inv hosts names the machines",
}


def wish(
    source: str = "", at: str = "", target: str = "", failed_at: str = "", override: str = "", runbook: str = ""
) -> tuple[Wish, datetime | None]:
    """The Wish that these arguments make, and when the failure began (None: not said). Raises UsageError; nothing is
    changed.
    """
    if at and target:
        raise UsageError("--at and --target both say where to restore to.", hint="give one of the two")
    if _NOT_IN_SOURCE.search(source):
        raise UsageError(f"--from: {source!r} holds a control character.", hint="a path, a URI, a backup id, or latest")
    if source.startswith("-") or source != source.strip():
        raise UsageError(
            f"--from: {source!r} begins with a hyphen, or with or ends in a space.",
            hint="a path, a URI, a backup id, or latest; a file of such a name is ./NAME",
        )
    if target and not (_LSN.fullmatch(target) or _POINT.fullmatch(target)):
        raise UsageError(
            f"--target: {target!r} is neither name:NAME nor lsn:X/Y.",
            hint="for example --target=name:before-release or --target=lsn:0/3000060",
        )
    moment = clock.read_time(at, argument="--at") if at else None
    failed = clock.read_time(failed_at, argument="--failed-at") if failed_at else None
    for argument, value in (("--at", moment), ("--failed-at", failed)):
        if value and value > clock.now():
            raise UsageError(
                f"{argument}: {clock.write_time(value)} is in the future.",
                hint=f"it is {clock.write_time(clock.now())} now",
            )
    return Wish(source=source or "latest", at=moment, target=target or None, overrides=_override(override)), failed


def _override(text: str) -> dict[str, str] | None:
    if not text:
        return None
    name, _, reason = text.partition("=")
    kind, _, machine = name.partition(":")
    if name not in OVERRIDES and not (kind == FENCE_MACHINE and machine):
        raise UsageError(
            f"--override: there is no {name!r}.",
            hint="; ".join(f"{each}: {meaning}" for each, meaning in OVERRIDES.items()),
        )
    if len(reason.strip()) < _REASON:
        raise UsageError(
            f"--override: {name} needs the reason, for the record: {_REASON} letters at least.",
            hint=f'--override="{name}=the host burnt down, confirmed by NAME"',
        )
    return {name: reason.strip()}


def required(argument: str, value: str) -> str:
    """The value of an argument. Raises UsageError that names it when it is empty."""
    if not value:
        raise UsageError(
            f"--{argument} is missing.",
            hint=_WHERE_LISTED[argument],
        )
    return value


def alone(**options: bool) -> None:
    """Raises UsageError when more than one of these options was given: each is another thing to do."""
    given = [f"--{name}" for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} do not go together.", safe="nothing was changed", hint=f"leave out {given[-1]}"
        )
