"""After a recovery: which of what customers saw acknowledged is still there, by service."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from functools import partial

from salvor.errors import CannotError
from salvor.sandbox import writer
from salvor.sandbox.o4o import customers, database
from salvor.sandbox.o4o.content import UPLOADS
from salvor.sandbox.o4o.layout import Layout
from salvor.sandbox.survivors import Survivors, count


def survivors(moment: datetime, since: datetime | None = None) -> dict[str, Survivors]:
    """Count what is there of what was acknowledged around `moment`, the damage, by service: orders of `api`, payments,
    uploads of `media`.

    `since`: leave out what was acknowledged before. Raises CannotError when the live database does not answer.
    """
    sandbox = Layout.standing()
    present: dict[str, tuple[str, Callable[[list[str]], set[str]]]] = {
        "api": (customers.ORDERS, partial(_rows, sandbox, "orders")),
        "payments": (customers.PAYMENTS, partial(_rows, sandbox, "payments")),
        "media": (customers.UPLOADS, partial(_pictures, sandbox)),
    }
    return {
        service: count(writer.acknowledged(sandbox.acknowledged, kind), moment, since, there)
        for service, (kind, there) in present.items()
    }


def _rows(sandbox: Layout, table: str, references: list[str]) -> set[str]:
    """Those of the references that a table of the live database has."""
    import psycopg
    from psycopg import sql

    question = sql.SQL("select reference from {} where reference = any(%s)").format(sql.Identifier(table))
    try:
        with database.server(sandbox).session(database.NAME, deadline=30.0) as connection:
            return {reference for (reference,) in connection.execute(question, [references])}
    except psycopg.Error as error:
        raise CannotError(
            f"The live {table} cannot be counted: {str(error).strip()}.", hint="inv assess --platform=o4o"
        ) from error


def _pictures(sandbox: Layout, references: list[str]) -> set[str]:
    """Those of the uploads that are among the media, every byte as it was uploaded."""
    wanted = set(references)
    found = [path for path in (sandbox.media / UPLOADS).glob("????-??-??/*.jpg") if path.stem in wanted]
    return {path.stem for path in found if hashlib.sha256(path.read_bytes()).hexdigest() == path.stem}
