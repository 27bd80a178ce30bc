"""The checks of a service: one question by SQL, HTTP, TCP or a command, and the limits of its answer."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from salvor import clock, web
from salvor.address import host_and_port
from salvor.change import WRONG_ITSELF, Finding, Level
from salvor.deadline import within
from salvor.errors import CommandError, OutcomeUnknownError, SecretError
from salvor.plain import in_words, one_line

_NO_ANSWER = "no answer"
_NOT_OF_THE_DATA = ("08", "28", "42501", "53", "57")
"""The classes of PostgreSQL's errors that tell of a connection, a login, a lack of room, or an operator, and the error
for a lack of rights: appendix A of its manual. An error of any other class is what the data answers, such as a table
that is not there.
"""
_OF_THE_CHECK = ("42601", "42803", "42702", "42P02", "25006")
"""Errors that no data leads to: of the syntax, of grouping, of a name that means two columns, of a parameter, and of a
statement that would write.
"""
_MOST_BYTES = 64 * 1024
_LIVE = ("live", "route")

_ANSWERING, _READING = 5.0, 60.0
"""Seconds that an answer may take, and one for which a whole tree is gone through."""


class Check(BaseModel):
    """One check: exactly one of `sql` and `ask` (put to `system`), `http`, `tcp` and `command`, and what its answer
    must be. `sql` is for databases, `ask` for kinds with questions of their own, such as `files *.jpg` of a tree.

    The limits `at_least`, `at_most` and `equals` are for the first value of a query and for what a command prints;
    a command must also end with exit code 0. HTTP must answer with `status` (none named: any 2xx) and a body whose
    first 64 KB hold `contains`. `deadline` is in seconds, for the whole of the exchange.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    sql: str | None = None
    ask: str | None = None
    system: str | None = None
    http: str | None = None
    status: int | None = Field(default=None, ge=100, le=599)
    contains: str | None = None
    tcp: str | None = None
    command: tuple[str, ...] | None = Field(default=None, min_length=1)
    at_least: int | float | None = None
    at_most: int | float | None = None
    equals: bool | int | float | str | None = None
    deadline: Annotated[float, BeforeValidator(clock.read_duration), Field(gt=0, le=300)] = Field(
        default_factory=lambda known: _READING if known.get("ask") else _ANSWERING
    )

    @field_validator("http")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if re.search(r"[\s\x00-\x1f\x7f]", url):
            raise ValueError("a URL holds no spaces or control characters; write them as %20 and so on")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as http://HOST:PORT/PATH or https://HOST/PATH")
        if parts.username or parts.password:
            raise ValueError(
                "a URL here holds no user and no password: both would be shown; ask a path that needs none"
            )
        return url

    @field_validator("tcp")
    @classmethod
    def _tcp(cls, address: str | None) -> str | None:
        if address is not None:
            host_and_port(address)
        return address

    @model_validator(mode="after")
    def _whole(self) -> Check:
        kinds = [kind for kind in ("sql", "ask", "http", "tcp", "command") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = f"this one has {' and '.join(kinds)}" if kinds else "this one has none"
            raise ValueError(f"a check asks exactly one of sql, ask, http, tcp and command; {found}")
        if (self.question is None) != (self.system is None):
            raise ValueError("sql and system go together, or ask and system: system names what is asked")
        if self.http is None and (self.status is not None or self.contains is not None):
            raise ValueError("status and contains are for http")
        limits = self.at_least is not None or self.at_most is not None or self.equals is not None
        if self.question is not None and not limits:
            raise ValueError("a query needs at_least, at_most or equals: without one it could not fail")
        if limits and self.question is None and self.command is None:
            raise ValueError("at_least, at_most and equals are for sql, ask and command")
        return self

    @property
    def question(self) -> str | None:
        """What is put to `system`, which answers with a value."""
        return self.sql if self.sql is not None else self.ask


def run(check: Check, *, ask: Callable[[str, str], Any], where: str) -> Finding:
    """Ask, and judge the answer. Never raises.

    `where` is `live`, a stage's name, or `route`; a query is put to `ask(statement, where)`, which returns its first
    value. UNKNOWN when no answer came in time or it could not be asked from here, FAIL when it was refused or is wrong.
    """
    subject = check.system or check.tcp or (check.command[0] if check.command else urlsplit(check.http or "").netloc)
    if check.question is None and where not in _LIVE:  # a stage answers only questions: nothing but its data is there
        detail = f"only asked of what is live, not of {where}"
        return Finding(subject, check.name, Level.UNKNOWN, limit=_limit(check), detail=detail)
    try:
        answer = within(check.deadline, lambda: _answer(check, ask, where))
    except Exception as error:  # noqa: BLE001  whatever a query, a library or a server does is an answer, not a crash
        level = Level.UNKNOWN if _cannot_tell(error) else Level.FAIL
        return Finding(subject, check.name, level, _what(error, check), _limit(check), one_line(in_words(error)))
    return Finding(subject, check.name, answer.level, one_line(answer.figure), _limit(check), one_line(answer.detail))


def tells_of_damage(finding: Finding) -> bool:
    """Whether a check of the data got an answer, and a wrong one. Who gives none may have been killed a moment ago."""
    return finding.level is Level.FAIL and not finding.figure.startswith(_NO_ANSWER)


@dataclass(frozen=True)
class _Answer:
    level: Level
    figure: str
    detail: str = ""


def _answer(check: Check, ask: Callable[[str, str], Any], where: str) -> _Answer:
    if check.question is not None:
        return _judge(check, ask(check.question, where))
    if check.http is not None:
        return _http_answer(check, check.http)
    if check.tcp is not None:
        begun = clock.monotonic()
        socket.create_connection(host_and_port(check.tcp), timeout=check.deadline).close()
        return _Answer(Level.PASS, f"connected in {1000 * (clock.monotonic() - begun):.0f} ms")
    return _command_answer(check, check.command or ())


def _judge(check: Check, value: Any) -> _Answer:
    """A value against the limits. NULL, NaN and what is not a number pass no limit."""
    number = _number(value)
    figure = "NULL" if value is None else str(value)
    if number is None and (check.at_least is not None or check.at_most is not None):
        return _Answer(Level.FAIL, figure, "this is not a number")
    good = value is not None
    if isinstance(check.equals, (str, bool)):
        good = good and (value is check.equals if isinstance(check.equals, bool) else str(value) == check.equals)
    elif check.equals is not None:
        good = number == Decimal(str(check.equals))
    if number is not None:
        good = good and (check.at_least is None or number >= Decimal(str(check.at_least)))
        good = good and (check.at_most is None or number <= Decimal(str(check.at_most)))
    return _Answer(Level.PASS if good else Level.FAIL, figure)


def _number(value: Any) -> Decimal | None:
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return None if number.is_nan() else number


def _limit(check: Check) -> str:
    if check.http is not None:
        status = "status 2xx" if check.status is None else f"status {check.status}"
        return f"{status}, contains {check.contains!r}" if check.contains is not None else status
    if check.tcp is not None:
        return "connects"
    limits = [
        f"{word} {value}"
        for word, value in (("at least", check.at_least), ("at most", check.at_most), ("equals", check.equals))
        if value is not None
    ]
    return ", ".join(limits) or "exit code 0"


# ------------------------------------------------------------------------------------------------ HTTP


def _http_answer(check: Check, url: str) -> _Answer:
    """One GET."""
    import urllib.error

    until = clock.monotonic() + check.deadline
    try:
        response = web.opener(follow=check.status is None or not 300 <= check.status < 400).open(
            url, timeout=check.deadline
        )
    except urllib.error.HTTPError as error:
        response = error
    with closing(response):
        status = int(response.status)
        body = web.body(response, until, most=_MOST_BYTES)
    figure = f"status {status}"
    if status != check.status if check.status is not None else not 200 <= status < 300:
        return _Answer(Level.FAIL, figure, body[:1000].decode("utf-8", "replace"))
    if check.contains is not None and check.contains not in body.decode("utf-8", "replace"):
        return _Answer(Level.FAIL, f"{figure}, without it", body[:1000].decode("utf-8", "replace"))
    return _Answer(Level.PASS, figure)


# ------------------------------------------------------------------------------------------------ commands


def _command_answer(check: Check, argv: tuple[str, ...]) -> _Answer:
    from salvor.shell import local

    said = ""
    for line in local().stream(argv, deadline=check.deadline):
        said += line + "\n"
        if len(said) > _MOST_BYTES:
            return _Answer(Level.FAIL, "more than 64 KB", "the command was stopped: it prints without end")
    if check.at_least is None and check.at_most is None and check.equals is None:
        return _Answer(Level.PASS, "exit code 0", said)
    return _judge(check, said.strip())


# ------------------------------------------------------------------------------------------------ what went wrong


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and what urllib wrapped."""
    found: BaseException | None = error
    while found is not None:
        yield found
        reason = getattr(found, "reason", None)
        found = reason if isinstance(reason, BaseException) else found.__cause__


def _is_of_the_check(error: BaseException) -> bool:
    """Whether the check asks what nothing can answer, such as SQL with a mistake in it, or that returns nothing."""
    return any(
        getattr(cause, "sqlstate", None) in _OF_THE_CHECK
        or (type(cause).__name__ == "ProgrammingError" and not getattr(cause, "sqlstate", None))  # of psycopg itself
        for cause in _causes(error)
    )


def _cannot_tell(error: BaseException) -> bool:
    """Whether the error says nothing of the service: no answer in time, our own machine could not ask, or it asked what
    nothing can answer.
    """
    if _is_of_the_check(error):
        return True
    for cause in _causes(error):
        if isinstance(cause, (CommandError, ConnectionError, ssl.SSLError)):
            return False  # it ended, refused, reset, or showed a wrong certificate
        if isinstance(cause, (TimeoutError, OutcomeUnknownError, SecretError)):
            return True
        if isinstance(cause, socket.gaierror):
            return cause.errno not in (socket.EAI_NONAME, socket.EAI_NODATA)  # these are answers: there is no such name
        if isinstance(cause, OSError) and not hasattr(cause, "reason"):
            return True  # no such program, no permission, no route to the host: something here, not the service
        if getattr(cause, "sqlstate", None) == "57014" or type(cause).__name__ == "ConnectionTimeout":
            return True  # PostgreSQL's statement timeout, and psycopg's own deadline for a connection
    return False


def _what(error: BaseException, check: Check) -> str:
    if _is_of_the_check(error):
        return WRONG_ITSELF
    for cause in _causes(error):
        if isinstance(cause, CommandError):
            return f"exit code {cause.exit_code_of_command}"
        if isinstance(cause, ConnectionRefusedError):
            return "refused"
        if (state := getattr(cause, "sqlstate", None)) and not state.startswith(_NOT_OF_THE_DATA):
            return "an error"
    if check.question is not None and isinstance(error, OutcomeUnknownError):
        return "cannot be told"
    return f"{_NO_ANSWER} within {clock.write_duration(check.deadline)}" if _timed_out(error) else _NO_ANSWER


def _timed_out(error: BaseException) -> bool:
    return any(isinstance(cause, (TimeoutError, OutcomeUnknownError)) for cause in _causes(error))
