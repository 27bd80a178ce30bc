"""Hand one message to one place, by apprise: mail, chat, pagers, webhooks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import urlencode, urlsplit

from salvor import clock, secrets
from salvor.deadline import within
from salvor.messages import Text

DEADLINE = 10.0
"""Seconds that a place has to take a message."""
WEBHOOKS = ("json", "jsons", "xml", "xmls", "form", "forms")
MAIL = ("mailto", "mailtos")


def understands(url: str) -> bool:
    """Whether apprise can make a place of this URL. Nothing is sent, and nobody is asked."""
    import apprise

    _silence()
    try:
        return apprise.Apprise.instantiate(url, suppress_exceptions=False) is not None
    except Exception:  # noqa: BLE001  whatever a plugin raises, it cannot be sent to; the text could hold the URL
        return False


def _silence() -> None:
    """What apprise says is in its results, and should not be on the terminal too."""
    import logging

    if not logging.getLogger("apprise").handlers:
        logging.getLogger("apprise").addHandler(logging.NullHandler())


def hand_over(url: str, text: Text, kind: str, fields: Mapping[str, str]) -> str:
    """Send `text` to an apprise URL. Returns why it was not taken, masked; nothing when it was. Never raises.

    `kind` is apprise's word: info, success, warning or failure. `fields` hold the message's `key`, by which a receiver
    can drop a repeat: it is the header `X-Salvor-Message` of mail and webhooks, and webhooks get all fields as data.
    After the deadline the message may still arrive.
    """
    import apprise

    _silence()
    try:
        # Neither its own threads nor its own deadline: such a thread, while it hangs, keeps the process from ending.
        # Nor redirects: what was posted becomes a question there, which any page answers, and nobody is told.
        asset = apprise.AppriseAsset(async_mode=False, service_timeout=0, http_redirects=False)
        notifier = apprise.Apprise(asset=asset)
        if not notifier.add(_with_fields(url, fields)):
            return "apprise does not understand its URL"
        title, body, plain = text.subject, text.body, apprise.NotifyFormat.TEXT
        send = partial(notifier.notify, title=title, body=body, notify_type=kind, body_format=plain)
        result = within(DEADLINE, send)
    except TimeoutError:
        return f"no answer within {clock.write_duration(DEADLINE)}"
    except Exception as error:  # noqa: BLE001  whatever a notifier's library raises, the message was not taken
        return _without(url, f"{type(error).__name__}: {error}")
    said = " ".join(dict.fromkeys(entry.message for entry in result.logs()))
    return "" if result else _without(url, said) or "apprise gives no reason"


def _with_fields(url: str, fields: Mapping[str, str]) -> str:
    scheme = url.partition("://")[0].lower()
    extra = {}
    if scheme in (*WEBHOOKS, *MAIL):
        extra["+X-Salvor-Message"] = fields["key"]
    if scheme in WEBHOOKS:
        extra |= {f":{name}": value for name, value in fields.items()}
    return f"{url}{'&' if '?' in url else '?'}{urlencode(extra)}" if extra else url


def _without(url: str, said: str) -> str:
    """What was said, masked, and without any part of the URL that could be a token."""
    said = secrets.mask(said)
    host = urlsplit(url).hostname or ""
    for part in sorted(set(re.split(r"[/:@?&=]", url)), key=len, reverse=True):
        if len(part) >= 6 and not (part.lower() == host and "." in host):
            said = said.replace(part, secrets.MASK)
    return said
