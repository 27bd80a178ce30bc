"""The platform's applications: each a small HTTP server whose `/health` does what its users need of it.

pm2 runs them by the release's `server.py`. Customers log in at `auth`, and show its token to the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import tornado.escape
from psycopg.conninfo import conninfo_to_dict

from salvor import clock, durable
from salvor.errors import CannotError
from salvor.sandbox import web
from salvor.sandbox.o4o.content import PICTURE, PRODUCTS, UPLOADS
from salvor.sandbox.web import Database

_LOOKED_AT = 8
"""Pictures that a look at the media opens."""
_REFERENCE = re.compile(r"[a-z0-9-]{8,64}")


class Handler(web.Handler):
    """What every application has: its settings and the database."""

    def initialize(self, settings: dict[str, str], database: Database) -> None:
        """Tornado gives what `run` names."""
        self.env = settings
        self.database = database

    async def one(self, statement: str, *arguments: object) -> dict[str, Any]:
        """The first row. Raises CannotError when there is none."""
        async with self.database.transaction() as connection:
            row = await (await connection.execute(statement.encode(), arguments or None)).fetchone()
        if not row:
            raise CannotError("There is no such row.")
        return row

    async def try_out(self, statement: str) -> None:
        """Write, and roll it back."""
        async with self.database.transaction() as connection, connection.transaction(force_rollback=True):
            await connection.execute(statement.encode())

    def sign(self, text: str, key: str) -> str:
        """A signature by one of the secrets in the settings."""
        return hmac.new(self.env[key].encode(), text.encode(), hashlib.sha256).hexdigest()

    def user(self) -> int:
        """Who shows a token of `auth`. Raises ValueError when it is none."""
        number, _, signature = self.request.headers.get("Authorization", "").partition(".")
        if not number.isdecimal() or not hmac.compare_digest(signature, self.sign(number, "JWT_SECRET")):
            raise ValueError("this is no token of ours")
        return int(number)

    def picture(self, name: str) -> bytes:
        """A picture of the media. Raises OSError, or CannotError when it is none any more."""
        found = Path(self.env["MEDIA_PATH"], name).read_bytes()
        if not found.startswith(PICTURE):
            raise CannotError(f"{name} is no picture.")
        return found

    def look_at_media(self) -> None:
        """Open some of the pictures."""
        for number in random.sample(range(1, PRODUCTS + 1), _LOOKED_AT):
            self.picture(f"products/{number:04}.jpg")


class Health(Handler):
    """`GET /health`: 200 when what `check` does can be done, else 503 with why."""

    async def get(self) -> None:
        """200 or 503."""
        await self.check()
        self.write({"status": "ok"})

    async def check(self) -> None:
        """What the application's users need."""
        raise NotImplementedError


class AuthHealth(Health):
    """A user is found and gets a token."""

    async def check(self) -> None:
        user = await self.one("select id from users where email = %s", "user7@example.com")
        self.sign(str(user["id"]), "JWT_SECRET")


class Login(Handler):
    """`POST /login` with `{"email": TEXT, "password": TEXT}`: `{"token": TEXT}`."""

    async def post(self) -> None:
        """200, or 403."""
        said = tornado.escape.json_decode(self.request.body)
        found = hashlib.sha256(f"{said['email']}:{said['password']}".encode()).hexdigest()
        async with self.database.transaction() as connection:
            rows = await connection.execute("select id, password_hash from users where email = %s", [said["email"]])
            user = await rows.fetchone()
        if not user or not hmac.compare_digest(user["password_hash"], found):
            self.set_status(403)
            self.write({"error": "wrong e-mail address or password"})
            return
        number = str(user["id"])
        self.write({"token": f"{number}.{self.sign(number, 'JWT_SECRET')}"})


class ApiHealth(Health):
    """Products are read, an order is written and rolled back, pictures are opened."""

    async def check(self) -> None:
        await self.one("select name, price from products order by id desc limit 1")
        await self.try_out(
            "insert into orders (reference, user_id, product_id, amount) select gen_random_uuid()::text, 1, 1, 1"
        )
        self.look_at_media()


class Orders(Handler):
    """`POST /orders` with `{"reference": TEXT, "product": ID}`: 201 with its amount, it is committed."""

    async def post(self) -> None:
        """201; 409 when it was ordered already."""
        user, wanted = self.user(), tornado.escape.json_decode(self.request.body)
        row = await self.one(
            "insert into orders (reference, user_id, product_id, amount)"
            " select %s, %s, id, price from products where id = %s returning amount",
            str(wanted["reference"]),
            user,
            int(wanted["product"]),
        )
        self.set_status(201)
        self.write({"reference": wanted["reference"], "amount": str(row["amount"])})


class Uploads(Handler):
    """`POST /uploads/NAME` with a picture: 201 once it is on the disk."""

    async def post(self, name: str) -> None:
        """201, with its path among the media."""
        self.user()
        content = self.request.body
        if not _REFERENCE.fullmatch(name) or not content.startswith(PICTURE):
            raise ValueError("this is no picture")
        media = Path(self.env["MEDIA_PATH"])
        path = Path(UPLOADS) / clock.now().date().isoformat() / f"{name}.jpg"
        for folder in (media / UPLOADS, media / path.parent):  # never the media itself: they are lost, or not mounted
            folder.mkdir(mode=0o700, exist_ok=True)
        durable.replace(media / path, content)
        self.set_status(201)
        self.write({"path": str(path)})


class PaymentsHealth(Health):
    """A payment is written and rolled back, and its receipt signed."""

    async def check(self) -> None:
        self.sign("receipt", "PAYMENT_KEY")
        await self.try_out(
            "insert into payments (reference, order_reference, amount, receipt)"
            " select gen_random_uuid()::text, reference, amount, 'none' from orders order by id desc limit 1"
        )


class Payments(Handler):
    """`POST /payments` with `{"reference": TEXT, "order": TEXT}`: 201 with its receipt, it is committed."""

    async def post(self) -> None:
        """201; 409 when it was paid already."""
        self.user()
        wanted = tornado.escape.json_decode(self.request.body)
        row = await self.one(
            "insert into payments (reference, order_reference, amount, receipt)"
            " select %s, reference, amount, %s from orders where reference = %s returning receipt",
            str(wanted["reference"]),
            self.sign(str(wanted["reference"]), "PAYMENT_KEY"),
            str(wanted["order"]),
        )
        self.set_status(201)
        self.write({"reference": wanted["reference"], "receipt": row["receipt"]})


class WebHealth(Health):
    """Every file of the release is as it was built, and pictures are opened."""

    async def check(self) -> None:
        build = Path(self.env["BUILD_PATH"])
        for name, digest in json.loads((build / "manifest.json").read_bytes()).items():
            if hashlib.sha256((build / name).read_bytes()).hexdigest() != digest:
                raise CannotError(f"{name} is not what was built.")
        self.look_at_media()


class Pages(Handler):
    """`GET /`: the release's first page; `GET /media/PATH`: a picture."""

    async def get(self, path: str) -> None:
        """200; 503 for what is not there."""
        if path.startswith("media/") and ".." not in path:
            self.set_header("Content-Type", "image/jpeg")
            self.write(self.picture(path.removeprefix("media/")))
        else:
            self.write((Path(self.env["BUILD_PATH"]) / "index.html").read_bytes())


class AdminHealth(Health):
    """The administrators and the newest orders are read, and the media are there."""

    async def check(self) -> None:
        await self.one("select id from users where is_admin limit 1")
        await self.one("select reference from orders order by id desc limit 1")
        self.look_at_media()


class AnalyticsHealth(Health):
    """A page view is written and rolled back, and those of a day are counted."""

    async def check(self) -> None:
        await self.try_out("insert into page_views (at, path, milliseconds) values (now(), '/health', 1)")
        await self.one("select count(*) from page_views where at > now() - interval '1 day'")


class ReportsHealth(Health):
    """The revenue of a day is read, and can be written down."""

    async def check(self) -> None:
        await self.one("select day, amount from revenue_by_day limit 1")
        folder = self.env["LOG_PATH"]
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CannotError(f"{folder} cannot be written to.")


_PATHS: dict[str, list[tuple[str, type[Handler]]]] = {
    "auth": [("/health", AuthHealth), ("/login", Login)],
    "api": [("/health", ApiHealth), ("/orders", Orders), ("/uploads/(.+)", Uploads)],
    "payments": [("/health", PaymentsHealth), ("/payments", Payments)],
    "web": [("/health", WebHealth), ("/(.*)", Pages)],
    "admin": [("/health", AdminHealth)],
    "analytics": [("/health", AnalyticsHealth)],
    "reports": [("/health", ReportsHealth)],
}


def run(name: str, settings: dict[str, str]) -> None:
    """Be the application of that name, for ever."""
    asyncio.run(_serve(name, settings))


async def _serve(name: str, settings: dict[str, str]) -> None:
    conninfo = {**conninfo_to_dict(settings["DATABASE_URL"]), "application_name": name}
    address = str(conninfo.pop("host"))
    given = {"settings": settings, "database": Database(lambda: (address, 3600.0), conninfo)}
    await web.serve(int(settings["PORT"]), [(path, handler, given) for path, handler in _PATHS[name]])
