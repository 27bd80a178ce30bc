"""The rules of automatic recovery, as the inventory writes them in `watch:` and `escalation:`."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from salvor import clock
from salvor.host import services
from salvor.secrets import SecretReference, mask

Seconds = Annotated[float, BeforeValidator(clock.read_duration)]


def _check_service(name: str) -> str:
    if not services.NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a service")
    return name


ServiceName = Annotated[str, AfterValidator(_check_service)]

DESTRUCTIVE = {
    "clear": "what the cache holds is gone",
    "reset_connections": "what these sessions have not committed is gone",
    "run": "nobody knows what a script takes away",
    "runbook": "it cuts users over to what it restores",
}
"""The actions that need `allow: true`, and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Part):
    """What is watched, exactly one of:

    `host` with `figure`: memory, disk or inodes in per cent (`path`: of that file system; else the fullest), or load a
    processor; `host` with `running`: whether that service runs there; `check`: one of the service's checks, by its
    name; `prometheus` with `query`: the worst value that this server's answer holds; `alert`: whether Alertmanager says
    that the alert of this name fires, with these `labels`.
    """

    host: str | None = None
    figure: Literal["memory", "load", "disk", "inodes"] | None = None
    path: str | None = None
    running: ServiceName | None = None
    check: str | None = None
    prometheus: str | None = None
    query: str | None = Field(default=None, min_length=1)
    token: SecretReference | None = None
    alert: str | None = Field(default=None, min_length=1)
    labels: dict[str, str] = {}

    @property
    def is_figure(self) -> bool:
        """Whether it has a value, rather than being good or bad by itself."""
        return self.figure is not None or self.prometheus is not None

    @field_validator("prometheus")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("write it as http://HOST:PORT, as the query is put to it")
            if parts.username or parts.password:
                raise ValueError("a URL here holds no password; name it with token: file:PATH")
        return url

    @model_validator(mode="after")
    def _one(self) -> Metric:
        named = [name for name in ("host", "check", "prometheus", "alert") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError("a metric is exactly one of host, check, prometheus and alert")
        if (self.host is not None) != ((self.figure is not None) != (self.running is not None)):
            raise ValueError("host goes with one of figure (memory, load, disk, inodes) and running (a service there)")
        if (self.prometheus is None) != (self.query is None):
            raise ValueError("prometheus and query go together")
        for name, owner in (("path", "figure"), ("token", "prometheus"), ("labels", "alert")):
            if getattr(self, name) and not getattr(self, owner):
                raise ValueError(f"{name} goes with {owner}")
        if self.path is not None and self.figure not in ("disk", "inodes"):
            raise ValueError("path is for figure: disk or inodes")
        return self


class Action(_Part):
    """One thing to do, exactly one of:

    `restart`: an application, or with `host` a service of that machine; `clear`: a cache; `reset_connections`: sessions
    of a database that are idle in a transaction for so long (`idle_in_transaction`), of a `role` or an `application`;
    `scale`: an application `to` so many instances; `roll_back`: an application to its release before; `run`: a
    command on the machine `host`, with its `deadline`; `runbook`: a recovery of the rule's service, alone in its stage.
    """

    restart: ServiceName | None = None
    clear: str | None = None
    reset_connections: str | None = None
    idle_in_transaction: Annotated[Seconds, Field(gt=0)] | None = None
    role: str | None = None
    application: str | None = None
    scale: str | None = None
    to: int | None = Field(default=None, ge=1, le=1000)
    roll_back: str | None = None
    run: tuple[str, ...] | None = Field(default=None, min_length=1)
    host: str | None = None
    deadline: Annotated[Seconds, Field(gt=0, le=3600)] = 60.0
    runbook: str | None = None
    allow: bool = False

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(name for name in _ACTIONS if getattr(self, name) is not None)

    @property
    def system(self) -> str | None:
        """The system that it is done to; None for a runbook, which is done to the rule's service."""
        return None if self.runbook else self.host or str(getattr(self, self.kind))

    @field_validator("run")
    @classmethod
    def _no_secret(cls, argv: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if argv and any(mask(word) != word for word in argv):
            raise ValueError("a command holds no secret, as everybody on that machine could read it (it is not shown)")
        return argv

    @model_validator(mode="after")
    def _whole(self) -> Action:
        named = [name for name in _ACTIONS if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"an action is exactly one of {', '.join(_ACTIONS)}")
        if (self.run is not None and not self.host) or (self.host and self.run is None and self.restart is None):
            raise ValueError("host: MACHINE goes with run, and with the restart of a service there")
        if (self.scale is None) != (self.to is None):
            raise ValueError("scale and to go together")
        limits = [one for one in (self.idle_in_transaction, self.role, self.application) if one is not None]
        if bool(limits) != (self.reset_connections is not None):
            raise ValueError("reset_connections needs idle_in_transaction, role or application: which sessions it ends")
        if named[0] in DESTRUCTIVE and not self.allow:
            raise ValueError(f"{named[0]} needs allow: true, because {DESTRUCTIVE[named[0]]}")
        return self


_ACTIONS = ("restart", "clear", "reset_connections", "scale", "roll_back", "run", "runbook")


class Rule(_Part):
    """When `metric` of `service` is bad (`above` or `below` a limit, or simply bad) `for` so long: `immediately` act;
    when it is not better `better_within` later, `then` act again; then `escalate`, to an escalation, by its name.

    After an episode that acted, the rule acts again only after its `cool_down`: what comes back sooner, and more than
    `most_per_hour` actions, are people's. What cannot be told, or acted on, `unknown_for` so long is people's too. All
    times in seconds.
    """

    title: str = ""
    service: str
    metric: Metric
    above: float | None = None
    below: float | None = None
    for_: Seconds = Field(default=0.0, alias="for")
    immediately: tuple[Action, ...] = ()
    then: tuple[Action, ...] = ()
    better_within: Seconds = 120.0
    escalate: str | None = None
    unknown_for: Annotated[Seconds, Field(gt=0)] = 600.0
    cool_down: Annotated[Seconds, Field(ge=60)] = 1800.0
    most_per_hour: int = Field(default=6, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> Rule:
        limits = [limit for limit in (self.above, self.below) if limit is not None]
        if len(limits) != int(self.metric.is_figure):
            need = "needs one limit: above or below" if self.metric.is_figure else "is good or bad by itself: no limit"
            raise ValueError(f"this metric {need}")
        if not self.for_ and not self.metric.alert:
            raise ValueError("for: is missing; only an alert, which Alertmanager has waited for, may act at once")
        if not (self.immediately or self.then or self.escalate):
            raise ValueError("a rule needs something to do: immediately, then or escalate")
        for stage in (self.immediately, self.then):
            if len(stage) > self.most_per_hour:
                raise ValueError(f"most_per_hour: {self.most_per_hour} never lets these {len(stage)} actions begin")
            if len(stage) > 1 and any(action.runbook for action in stage):
                raise ValueError("a runbook is alone in its stage, as it holds the service while it runs")
        return self

    @property
    def limit(self) -> str:
        """What it must not be, for people."""
        if self.above is not None:
            return f"above {self.above:g}"
        return f"below {self.below:g}" if self.below is not None else ""

    def actions(self, stage: str) -> tuple[Action, ...]:
        """The actions of `immediately` or `then`."""
        return {"immediately": self.immediately, "then": self.then}[stage]


class Call(_Part):
    """Whom to call: a channel of the outbox, `after` so many seconds of the escalation without an acknowledgement."""

    channel: str
    after: Seconds = 0.0


class Escalation(_Part):
    """People in their order, by channels of the outbox `messages`; `ticket` is a channel that opens one, at once."""

    messages: str
    people: tuple[Call, ...] = Field(min_length=1)
    ticket: str | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Escalation:
        delays = [call.after for call in self.people]
        if delays != sorted(delays):
            raise ValueError("people stand in the order in which they are called")
        channels = [*(call.channel for call in self.people), *([self.ticket] if self.ticket else [])]
        if len(set(channels)) < len(channels):
            raise ValueError("a channel stands twice")
        return self

    @property
    def calls(self) -> tuple[Call, ...]:
        """All that is to be told, the ticket first."""
        return (*([Call(channel=self.ticket)] if self.ticket else []), *self.people)
