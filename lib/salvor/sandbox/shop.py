"""The sandbox's application: a small shop on the database behind the name `orders-db.sandbox.test`.

It is an ordinary, well-behaved client: it asks the DNS server for the database's address and believes the answer for
its time to live; it opens a new connection after a failure; it never waits longer than its deadline, and then says 503.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import tornado.escape
import tornado.web
from psycopg.rows import dict_row

from salvor import clock
from salvor.errors import CannotError
from salvor.sandbox import names
from salvor.sandbox.layout import Layout

_DEADLINE = 2.0
_CONNECTIONS = 6

Connection = psycopg.AsyncConnection[dict[str, Any]]


class Database:
    """Connections to whichever server the name leads to, at most `_CONNECTIONS`, opened when they are needed."""

    def __init__(self, sandbox: Layout) -> None:
        self.sandbox = sandbox
        self.password = sandbox.secret("shop.password")
        self.idle: list[tuple[str, Connection]] = []
        self.turn = asyncio.Semaphore(_CONNECTIONS)
        self.address = ""
        self.believed_until = 0.0

    async def resolve(self) -> str:
        """The database's address; asked again when the time to live of the last answer has passed."""
        if clock.monotonic() >= self.believed_until:
            asked = clock.monotonic()
            self.address, time_to_live = await asyncio.to_thread(names.resolve, self.sandbox)
            self.believed_until = asked + time_to_live
        return self.address

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """One transaction: committed at the end of the block, or not at all.

        Raises CannotError or psycopg.Error; the connection is not used again after either.
        """
        async with self.turn:
            address = await self.resolve()
            connection = await self.take(address)
            # A frozen server neither answers nor closes, and would hold a cancelled query's client as well; a closed
            # socket ends the wait whatever it was for.
            alarm = asyncio.get_running_loop().call_later(_DEADLINE, _hang_up, connection)
            try:
                async with connection.transaction():
                    yield connection
            except BaseException:
                await connection.close()
                raise
            finally:
                alarm.cancel()
            self.idle.append((address, connection))

    async def take(self, address: str) -> Connection:
        while self.idle:
            known, connection = self.idle.pop()
            if known == address and not connection.closed:
                return connection
            await connection.close()
        return await psycopg.AsyncConnection.connect(
            host=address,
            port=self.sandbox.database_port,
            dbname="orders",
            user="shop",
            password=self.password,
            application_name="shop",
            connect_timeout=int(_DEADLINE),
            row_factory=dict_row,
            autocommit=True,
        )


def _hang_up(connection: Connection) -> None:
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


class Handler(tornado.web.RequestHandler):
    """Answers in JSON: 400 for an order that makes no sense, 503 when the database does not do its part."""

    def initialize(self, database: Database) -> None:
        """Tornado gives what `application` names."""
        self.database = database

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What went wrong, in one line."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, psycopg.errors.UniqueViolation):
            self.set_status(409)
        elif isinstance(
            error, (psycopg.errors.IntegrityError, psycopg.errors.DataError, KeyError, TypeError, ValueError)
        ):
            self.set_status(400)
        elif isinstance(error, (psycopg.Error, CannotError, OSError)):
            self.set_status(503)
        self.finish({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})

    def log_exception(self, *exception: Any) -> None:
        """Nothing: the access log has the status, and an outage would fill the disk with tracebacks."""

    async def read_and_write(self) -> int:
        """Read the newest orders and what belongs to them, and write one that is rolled back; how many were read."""
        async with self.database.transaction() as connection:
            newest = await connection.execute(
                "select o.id, o.amount, o.note, c.name, count(l.*) as lines"
                " from (select * from orders order by id desc limit 50) o"
                " join customers c on c.id = o.customer_id join order_lines l on l.order_id = o.id"
                " group by o.id, o.amount, o.note, c.name"
            )
            async with connection.transaction(force_rollback=True):
                await connection.execute(
                    "insert into orders (reference, customer_id, amount, status)"
                    " select gen_random_uuid()::text, min(id), 1, 'new' from customers"
                )
            return newest.rowcount


class Health(Handler):
    """`GET /health`: 200 when orders can be read and written."""

    async def get(self) -> None:
        """200 with how many orders were read, or 503."""
        if not (read := await self.read_and_write()):
            self.set_status(503)
        self.write({"status": "ok" if read else "there are no orders", "database": self.database.address})


class Orders(Handler):
    """`GET /orders`: the newest; `POST /orders`: a new one."""

    async def get(self) -> None:
        """The newest 20 orders."""
        async with self.database.transaction() as connection:
            rows = await connection.execute(
                "select id, reference, customer_id, amount, status, created from orders order by id desc limit 20"
            )
            orders = [
                {**row, "amount": str(row["amount"]), "created": clock.write_time(row["created"])}
                for row in await rows.fetchall()
            ]
        self.write({"orders": orders})

    async def post(self) -> None:
        """`{"reference": TEXT, "customer": ID, "lines": [{"product": ID, "quantity": N}]}`: 201, it is committed."""
        wanted = tornado.escape.json_decode(self.request.body)
        quantities = {int(line["product"]): int(line["quantity"]) for line in wanted["lines"]}
        async with self.database.transaction() as connection:
            found = await connection.execute("select id, price from products where id = any(%s)", [list(quantities)])
            prices: dict[int, Decimal] = {row["id"]: row["price"] for row in await found.fetchall()}
            amount = sum(prices[product] * quantity for product, quantity in quantities.items())
            made = await connection.execute(
                "insert into orders (reference, customer_id, amount, status, note)"
                " values (%s, %s, %s, 'new', %s) returning id",
                [str(wanted["reference"]), int(wanted["customer"]), amount, wanted.get("note")],
            )
            row = await made.fetchone()
            assert row
            lines = [
                (row["id"], number, product, quantities[product], prices[product])
                for number, product in enumerate(quantities, 1)
            ]
            await connection.cursor().executemany(
                "insert into order_lines (order_id, line, product_id, quantity, price) values (%s, %s, %s, %s, %s)",
                lines,
            )
        self.set_status(201)
        self.write({"id": row["id"], "reference": wanted["reference"]})


async def _serve(place: Path) -> None:
    sandbox = Layout.find(place)
    assert sandbox, f"there is no sandbox in {place}"
    parts = {"database": Database(sandbox)}
    # The access log would grow by 50 lines a second; failures are in the answers.
    settings: dict[str, Any] = {"log_function": lambda handler: None}
    tornado.web.Application([(r"/health", Health, parts), (r"/orders", Orders, parts)], **settings).listen(
        sandbox.shop_port, "127.0.0.1"
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
