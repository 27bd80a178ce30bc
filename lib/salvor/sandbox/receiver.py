"""The sandbox's receiver of notifications: HTTP (`POST /CHANNEL` with JSON) and mail, kept one JSON line a message."""

from __future__ import annotations

import asyncio
import email.message
import email.policy
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salvor import clock

KEY_HEADER = "X-Salvor-Message"
"""The header that carries a message's key, which is the same whenever the same message is sent again."""


@dataclass(frozen=True)
class Message:
    """A message as it came in: when (UTC), its channel (the URL's path, or the mail's recipient), its key and words."""

    at: str
    channel: str
    key: str
    title: str
    text: str


def messages(path: Path) -> list[Message]:
    """What was received so far, oldest first."""
    if not path.exists():
        return []
    return [
        Message(**json.loads(line))
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def count(path: Path) -> tuple[int, int]:
    """How many distinct messages were received, and how many times one of them came again on its channel."""
    keys = Counter((message.channel, message.key) for message in messages(path))
    return len(keys), keys.total() - len(keys)


class _Book:
    """Appends messages to the file; each is on disk before its sender is told so."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def keep(self, channel: str, key: str, title: str, text: str) -> None:
        message = Message(clock.write_time(clock.now()), channel, key or f"{title}\n{text}", title, text)
        os.write(self.descriptor, (json.dumps(asdict(message), ensure_ascii=False) + "\n").encode())
        os.fdatasync(self.descriptor)


class _Mail:
    """What aiosmtpd calls for a mail that came in."""

    def __init__(self, book: _Book) -> None:
        self.book = book

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, email.message.EmailMessage)
        body = mail.get_body(("plain", "html"))
        text = str(body.get_content()).strip() if body else ""
        for recipient in envelope.rcpt_tos:
            self.book.keep(recipient, mail.get(KEY_HEADER, ""), mail.get("Subject", ""), text)
        return "250 kept"


async def _serve(place: Path) -> None:
    import tornado.web
    from aiosmtpd.smtp import SMTP

    from salvor.sandbox.folders import Folders

    sandbox = Folders.find(place)
    assert sandbox, f"there is no sandbox in {place}"
    kept = sandbox.messages
    book = _Book(kept)

    class Channel(tornado.web.RequestHandler):
        def post(self, channel: str) -> None:
            try:
                said = json.loads(self.request.body)
            except ValueError:
                said = {"message": self.request.body.decode(errors="replace")}
            book.keep(
                channel,
                self.request.headers.get(KEY_HEADER, ""),
                str(said.get("title", "")),
                str(said.get("message", "")),
            )
            self.set_status(204)

        def get(self, channel: str) -> None:
            distinct, repeated = count(kept)
            self.write({"distinct": distinct, "repeated": repeated})

    tornado.web.Application([(r"/(.*)", Channel)]).listen(sandbox.receiver_port, "127.0.0.1")
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: SMTP(_Mail(book), hostname="sandbox.test"), "127.0.0.1", sandbox.mail_port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
