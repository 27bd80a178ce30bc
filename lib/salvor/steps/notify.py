"""Notify: tell the people who must know, each message once."""

from __future__ import annotations

from collections.abc import Iterator

from salvor import cutover
from salvor.change import Change
from salvor.incident import Incident


def notify(incident: Incident) -> Iterator[Change]:
    """Tell those who must know: that it was declared and, once users are back, that it is over.

    Users are back when `reroute` passed, checks included: that a program runs does not say that it does its work.
    """
    if incident.outbox is None or not incident.decisions:
        return
    yield from incident.messages("declared")
    if (incident.recovered_once or incident.rerouted_ahead) and cutover.is_done(incident):
        yield from incident.messages("recovered")
