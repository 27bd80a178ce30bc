"""After a recovery: which of the orders that customers saw acknowledged are still there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from salvor import clock, sandbox
from salvor.errors import CannotError
from salvor.sandbox import names, writer

_NOTICEABLE = timedelta(seconds=1)


@dataclass(frozen=True)
class Survivors:
    """How many acknowledged orders the live database still has; times are UTC.

    `before` were acknowledged up to the moment of the damage, `after` from then until the service stopped.
    `stopped` is the last acknowledgement before the outage (None: there was none), `back` the first after it (None: not
    yet).
    `newest` is the newest acknowledgement, of those two groups, whose order survived.
    """

    before: int
    before_survived: int
    after: int
    after_survived: int
    newest: datetime | None
    stopped: datetime | None
    back: datetime | None

    @property
    def lost(self) -> int:
        """How many acknowledged orders are not there any more."""
        return self.before - self.before_survived + self.after - self.after_survived


def survivors(moment: datetime, since: datetime | None = None) -> Survivors:
    """Count what the live database, asked through the route, has of what was acknowledged around `moment`, the damage.

    `since`: leave out what was acknowledged before, when an earlier recovery went back to a moment.

    The outage is the longest pause between two acknowledgements that ends after `moment`, if it is over a second: at 50
    orders a second nothing else pauses for long. Raises CannotError when the live database does not answer.
    """
    return count(writer.acknowledged(sandbox.find().acknowledged), moment, since, _present)


def count(
    acknowledged: Sequence[tuple[str, datetime]],
    moment: datetime,
    since: datetime | None,
    present: Callable[[list[str]], set[str]],
) -> Survivors:
    """The same for anything that was acknowledged (reference and time, oldest first): `present` tells which of some
    references are there.
    """
    stopped, back = _outage(acknowledged, moment)
    before = [(reference, at) for reference, at in acknowledged if at <= moment and (since is None or since < at)]
    after = [(reference, at) for reference, at in acknowledged if moment < at and (stopped is None or at <= stopped)]
    there = present([reference for reference, _ in (*before, *after)])
    return Survivors(
        before=len(before),
        before_survived=sum(reference in there for reference, _ in before),
        after=len(after),
        after_survived=sum(reference in there for reference, _ in after),
        newest=max((at for reference, at in (*before, *after) if reference in there), default=None),
        stopped=stopped,
        back=back,
    )


def _outage(acknowledged: Sequence[tuple[str, datetime]], moment: datetime) -> tuple[datetime | None, datetime | None]:
    times: list[datetime | None] = [at for _, at in acknowledged]
    pauses = [
        ((later or clock.now()) - earlier, earlier, later)
        for earlier, later in zip(times, [*times[1:], None], strict=True)
        if earlier and (later is None or later > moment)
    ]
    longest, stopped, back = max(pauses, key=lambda pause: pause[0], default=(timedelta(), None, None))
    return (stopped, back) if longest > _NOTICEABLE else (None, None)


def _present(references: list[str]) -> set[str]:
    """Those of the references that the database behind the name has."""
    import psycopg

    found = sandbox.find()
    address, _ = names.resolve(found)
    try:
        with psycopg.connect(
            host=address,
            port=found.database_port,
            dbname="orders",
            user="shop",
            password=found.secret("shop.password"),
            connect_timeout=5,
            options="-c statement_timeout=30s",
        ) as connection:
            rows = connection.execute("select reference from orders where reference = any(%s)", [references])
            return {reference for (reference,) in rows}
    except psycopg.Error as error:
        raise CannotError(
            f"The live orders at {names.DATABASE} ({address}) cannot be counted: {str(error).strip()}.",
            hint="inv assess --service=orders",
        ) from error
