"""What a server means that does not let us in, in whatever language it says so."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from salvor import secrets

if TYPE_CHECKING:
    import psycopg

    from salvor.postgres.connection import Operator

# libpq gives the words of a failed connection alone, and a server says them in the language of its lc_messages, also
# who may set that for a session: it is not let in yet. The two blanks are libpq's (pqBuildErrorMessage3).
_SAID_BY_THE_SERVER = re.compile(r"failed: \S+:  ")
_ENGLISH = re.compile(
    r"failed: FATAL:  .*(the database system|authentication failed|pg_hba\.conf|too many|connection slots"
    r"|does not exist|permission denied|not permitted|not currently accepting|terminating|could not)",
    re.DOTALL,
)
_MEANS = {
    "28000": "pg_hba.conf does not let it in, or it is not permitted to log in",
    "28P01": "password authentication failed",
    "42501": "permission denied",
    "53300": "too many clients",
    "57P03": "the database system is starting up or is shutting down",
}
"""SQLSTATEs (PostgreSQL's manual, "Error Codes"), and the English words by which the rest of us knows them."""
_WITH_OR_WITHOUT_TLS = ("disable", "allow", "prefer")
"""libpq's settings of PGSSLMODE that take a server at its word (PostgreSQL's manual, "SSL Mode Descriptions")."""
_BY_ITS_RULES = "28000"
"""What pg_hba.conf says of a connection over TLS that must be without it, among other things."""
_MENDS = (
    ("password authentication failed", "mend the user or password of operator:"),
    (
        r"pg_hba\.conf|authentication failed|valid client certificate",
        "let the operator in by its pg_hba.conf, with a password, and reload",
    ),
    (r"not permitted to log in|role .* does not exist", "mend the user of operator:, or alter role ... login"),
    (
        r'database "postgres" (does not exist(?!.*subdirectory)|is not currently accepting)',
        "have it take connections to a database postgres: as a superuser in template1, create database postgres, or "
        "alter database postgres allow_connections true",
    ),
)
"""What a server says that keeps the operator out and may be well, and what lets the operator in. A database that lost
its subdirectory is broken.
"""


def meaning(
    error: psycopg.OperationalError, address: str, port: int, database: str, operator: Operator, deadline: float
) -> str:
    """What the words of a failed connection mean in English, behind the word FATAL and the SQLSTATE; empty where they
    are English, no server's, or it does not tell again within `deadline` seconds.
    """
    said = str(error)
    if not _SAID_BY_THE_SERVER.search(said) or _ENGLISH.search(said):
        return ""
    state = _sqlstate(address, port, database, operator, deadline)
    return f"FATAL {state}: {_MEANS.get(state, 'another refusal')}" if state else ""


def words(error: Exception) -> str:
    """What an error of a server says, in one line, with what it means in English where that is known."""
    said = " ".join(secrets.mask(str(error)).split()) or type(error).__name__
    means = _MEANS.get(getattr(error, "sqlstate", None) or "", "")
    return said if means in said else f"{said} ({means})"


def mend(said: str) -> str:
    """What lets the operator in, where a server says that it keeps that role out, whoever else it lets in; or ""."""
    return next((mend for pattern, mend in _MENDS if re.search(pattern, said)), "")


def is_full(said: str) -> bool:
    """Whether a server lets the operator in no more as all of its connection slots are in use."""
    return "too many clients" in said or "remaining connection slots" in said


def _sqlstate(address: str, port: int, database: str, operator: Operator, deadline: float) -> str:
    """Why that server lets nobody in so, as a SQLSTATE; empty when it did, did not tell, or is not to be asked: the
    password would go there without the proof of who it is that PGSSLMODE requires.
    """
    if os.environ.get("PGSSLMODE", "prefer") not in _WITH_OR_WITHOUT_TLS:
        return ""
    import pg8000.exceptions
    import pg8000.native

    known = {"host": address, "port": port, "database": database, "timeout": deadline}
    state = ""
    for encrypted in (None, False):  # with TLS where the server has it, then without, as libpq's sslmode=prefer does
        try:
            pg8000.native.Connection(operator.user, password=operator.secret(), ssl_context=encrypted, **known).close()
        except pg8000.exceptions.DatabaseError as error:
            told = error.args[0] if error.args else None
            state = str(told.get("C", "")) if isinstance(told, dict) else state
        except Exception:  # noqa: BLE001, S112  whatever this client meets there, libpq's words stand
            continue
        else:
            return ""
        if state != _BY_ITS_RULES:
            break
    return state
