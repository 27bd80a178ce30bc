"""Messages to people: each once for an incident, moment and channel; a channel that fails has a next.

A second person is asked once for each plan: what they approved says nothing of the next one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from salvor import clock, durable, notifier, roles, secrets, system
from salvor.change import Change, Finding, Level, Reachable, State
from salvor.errors import CannotError, UsageError
from salvor.messages import Audience, Language, Text, render
from salvor.system import Settings, verb

Severity = Literal["critical", "warning", "info", "customer"]

_MOMENTS: dict[str, tuple[Severity, ...]] = {
    "declared": ("critical", "customer"),
    "recovered": ("info", "customer"),
    "failed": ("critical",),
    "undone": ("warning",),
    "asked": ("critical",),
    "acting": ("warning",),
    "called": ("critical",),
    "better": ("info",),
    "told-again": ("warning",),
    "taken-back": ("warning",),
}
"""The severities of each moment's messages: `asked` is for a second person, the last five are those of automatic
recovery. Customers are told of what they see: that it broke, and that it is back.
"""
_KINDS = {"critical": "failure", "warning": "warning"}
"""Apprise's words for how bad it is."""
_HARMLESS = ("from", "to", "cc", "bcc", "reply", "name", "smtp", "mode", "format", "method", "verify", "cto", "rto")


def _is_reference(url: str) -> bool:
    return url.startswith(("env:", "file:", "cmd:"))


class Channel(BaseModel):
    """Where messages of some severities go. `next` is the channel that is told instead when this one fails.

    `url` is an apprise URL, plain or (with any password or token in it) a reference: env:NAME, file:PATH, cmd:COMMAND.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    severities: tuple[Severity, ...] = ()
    language: Language = "en"
    next: str | None = None

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str) -> str:
        if _is_reference(url):
            return url
        mend = "put the whole URL into a file of mode 600 and write file:PATH here (this value is not shown)"
        parts = urlsplit(url)
        if parts.scheme not in (*notifier.WEBHOOKS, *notifier.MAIL):
            raise ValueError(f"only plain webhooks and mail may stand here, as most other URLs hold a token; {mend}")
        extra = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if name not in _HARMLESS]
        if parts.password is not None or extra:
            raise ValueError(f"this URL may hold a secret ({', '.join(extra) or 'a password'}); {mend}")
        return url

    @field_validator("severities")
    @classmethod
    def _one_audience(cls, severities: tuple[Severity, ...]) -> tuple[Severity, ...]:
        if "customer" in severities and len(set(severities)) > 1:
            raise ValueError("a channel is for customers or for operators: their messages say different things")
        return severities


class OutboxSettings(Settings):
    """The channels by name."""

    kind: Literal["outbox"]
    channels: dict[str, Channel] = Field(min_length=1)

    @model_validator(mode="after")
    def _chains(self) -> OutboxSettings:
        for name in self.channels:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
                raise ValueError(f"{name!r} is not a channel's name; use small letters, digits and hyphens")
            chain = [name]
            while following := self._next(chain[-1]):
                if following in chain:
                    raise ValueError(f"next goes round in a circle: {' -> '.join([*chain, following])}")
                chain.append(following)
        return self

    def _next(self, name: str) -> str | None:
        following = self.channels[name].next
        if following is not None and following not in self.channels:
            raise ValueError(f"channels.{name}.next: there is no channel {following!r}")
        return following


class Outbox(roles.Outbox):
    """What was sent is kept as files in the incident's folder: `outbox/MOMENT.CHANNEL.sent` (or `.sending`, `.failed`).

    A crash while a message is sent leaves `.sending`: nobody knows whether it went out. It is sent again, and says that
    it may be a repeat, because a lost message is worse than a doubled one. Receivers can tell by its key.
    """

    Settings = OutboxSettings
    settings: OutboxSettings

    def __init__(self, name: str, settings: Any, context: system.Context) -> None:
        super().__init__(name, settings, context)
        self._sent: set[tuple[str, str]] = set()
        self._locks: dict[tuple[str, str], threading.Lock] = {}

    @property
    def folder(self) -> Path:
        """Where it is kept what was sent."""
        return self.context.folder / "outbox"

    def observe(self) -> State:
        """What was sent, what was begun and cut off, and what failed. No channel is tried."""
        try:
            paths = sorted(self.folder.iterdir())
        except FileNotFoundError:
            paths = []
        except OSError as error:
            return State(Reachable.UNKNOWN, self._identity, None, f"{self.folder} cannot be read: {error}")
        found = {state: [path.stem for path in paths if path.suffix == f".{state}"] for state in ("sent", "failed")}
        found["sending"] = [path.stem for path in paths if path.suffix == ".sending" and path.stem not in found["sent"]]
        summary = ", ".join(f"{len(messages)} {state}" for state, messages in found.items())
        return State(Reachable.UP, self._identity, None, summary, details=found)

    @property
    def _identity(self) -> str:
        return f"messages of {self.context.incident}"

    def messages(self, moment: str) -> list[Change]:
        """The messages of `moment` that are still to be sent. In a drill, customers are told nothing."""
        facts = self.context.facts()
        is_real = facts.get("purpose", "incident") == "incident"
        about: dict[str, Any] = {"plan": str(facts["plan"])} if moment == "asked" and facts.get("plan") else {}
        return [
            self.change(
                "send",
                why=f"{'customers' if severity == 'customer' else 'operators'} are told: {moment}",
                no_undo="a message cannot be taken back",
                moment=moment,
                channel=name,
                severity=severity,
                **about,
            )
            for severity in _MOMENTS[moment]
            for name, channel in self.settings.channels.items()
            if severity in channel.severities
            and (is_real or severity != "customer")
            and not self._is_sent(_message(moment, **about), name)
        ]

    def unreachable(self) -> dict[str, str]:
        """The channels whose URL is not there, or is none that apprise understands. Nothing is sent."""
        found = {}
        for name, channel in self.settings.channels.items():
            try:
                url = secrets.resolve(channel.url) if _is_reference(channel.url) else channel.url
                reason = "" if notifier.understands(url) else "apprise does not understand its URL"
            except CannotError as error:
                reason = error.what
            if reason:
                found[name] = reason
        return found

    def forecast(self, state: State, change: Change) -> State:
        """After `send`, the message is among those that were sent."""
        arguments = change.arguments
        message = f"{_message(str(arguments['moment']), str(arguments.get('plan', '')))}.{arguments['channel']}"
        return replace(state, details={**state.details, "sent": [*state.details.get("sent", []), message]})

    @verb(deadline=60, waits=False)
    def send(self, moment: str, channel: str, severity: str, plan: str = "") -> Iterator[Finding]:
        """Send the message of `moment` (asked: of a `plan`, by its hash) to `channel`, once; when it fails, to the
        channel after it, once. That it went out, and a full disk does not keep that, is a finding.

        Raises CannotError when the channel did not take it, also when the next one was told instead: it stays owed.
        """
        if moment not in _MOMENTS or severity not in _MOMENTS[moment]:
            raise UsageError(f"{self.name}: there is no message of severity {severity!r} at the moment {moment!r}.")
        if channel not in self.settings.channels:
            known = ", ".join(self.settings.channels)
            raise UsageError(f"{self.name}: there is no channel {channel!r}.", hint=f"its channels are {known}")
        audience: Audience = "customers" if severity == "customer" else "operators"
        reasons: dict[str, str] = {}
        amiss: list[Finding] = []
        told: str | None = channel
        while told:
            reason = self._deliver(moment, plan, told, severity, audience, tuple(reasons), amiss)
            if not reason:
                break
            reasons[told] = reason
            told = self.settings.channels[told].next
        if reasons:
            why = "; ".join(f"{name} ({reason.rstrip('. ')})" for name, reason in reasons.items())
            instead = f"{told} was told instead" if told else "nobody was told instead"
            raise CannotError(
                f"{self.name}: the message {moment!r} was not taken by {why}.",
                safe=f"{instead}; the recovery does not wait for it",
                hint="the same command again tries again; until then, tell them yourself",
            )
        return iter(amiss)

    def _deliver(
        self,
        moment: str,
        plan: str,
        channel: str,
        severity: str,
        audience: Audience,
        failed: tuple[str, ...],
        amiss: list[Finding],
    ) -> str:
        """Send it to one channel, unless it was. Returns why it was not taken; nothing when it was: what is amiss
        nevertheless is added.
        """
        message = (_message(moment, plan), channel)
        with self._locks.setdefault(message, threading.Lock()):
            if self._is_sent(*message):
                return ""
            repeated = any(self._path(*message, state).exists() for state in ("sending", "failed"))
            settings = self.settings.channels[channel]
            instead_of = () if "customer" in settings.severities else failed  # customers know none of our channels
            facts = self.context.facts()
            text = render(moment, audience, settings.language, facts, repeated=repeated, instead_of=instead_of)
            self._keep(*message, "sending")
            fields = {
                "key": f"{self.context.incident}/{'/'.join(message)}",
                "incident": self.context.incident,
                "moment": moment,
                "severity": severity,
                "possibly_repeated": "yes" if repeated else "no",
            }
            reason = self._hand_over(settings.url, text, fields)
            if reason:
                self._keep(*message, "failed", reason)
                return reason
            self._sent.add(message)
            not_kept = self._keep(*message, "sent")
        if not_kept:
            said = f"it went out, and this cannot be kept: {not_kept}; a later command may send it again"
            amiss.append(Finding(self.name, f"message {moment!r} to {channel}", Level.WARN, detail=said))
        return ""

    # --- what was sent -----------------------------------------------------------------------------------------------

    def _path(self, message: str, channel: str, state: str) -> Path:
        return self.folder / f"{message}.{channel}.{state}"

    def _is_sent(self, message: str, channel: str) -> bool:
        return (message, channel) in self._sent or self._path(message, channel, "sent").exists()

    def _keep(self, message: str, channel: str, state: str, detail: str = "") -> OSError | None:
        """Note on disk what became of a message. Returns what hindered it: a full disk stops no message."""
        path = self._path(message, channel, state)
        others = [self._path(message, channel, other) for other in ("sending", "failed") if other != state]
        try:
            durable.make_folder(self.folder)
            durable.replace(path, f"{clock.write_time(clock.now())} {detail}".strip().encode() + b"\n")
            for other in others:
                other.unlink(missing_ok=True)
            durable.flush_folder(self.folder)
        except OSError as error:
            return error
        return None

    # --- sending -----------------------------------------------------------------------------------------------------

    def _hand_over(self, url: str, text: Text, fields: Mapping[str, str]) -> str:
        """Send it. Returns why it was not taken; nothing when it was."""
        if _is_reference(url):
            try:
                url = secrets.resolve(url)
            except CannotError as error:
                return error.what
        is_good = fields["moment"] in ("recovered", "better")
        return notifier.hand_over(url, text, "success" if is_good else _KINDS.get(fields["severity"], "info"), fields)


def _message(moment: str, plan: str = "") -> str:
    """What a message is kept as: its moment, and the plan that it asks about."""
    return f"{moment}-{plan}" if plan else moment
