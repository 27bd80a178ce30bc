"""The sandbox's application: a small shop on the database behind the name `orders-db.sandbox.test`.

It asks the DNS server for the database's address and believes the answer for its time to live.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import tornado.escape

from salvor import clock
from salvor.sandbox import names, web
from salvor.sandbox.layout import Layout
from salvor.sandbox.web import Database

# One statement takes the shop half of the CPU that five do, and it shares the machine with what is to be watched on it.
# A product that there is not has no price, which a line of an order may not lack.
_ORDER = """
with asked as (
    select line, product, quantity, price
    from unnest(%s::bigint[], %s::integer[]) with ordinality as asked (product, quantity, line)
    left join products on id = product
), made as (
    insert into orders (reference, customer_id, amount, status, note)
    select %s, %s, sum(price * quantity), 'new', %s from asked
    returning id
), lines as (
    insert into order_lines (order_id, line, product_id, quantity, price)
    select id, line, product, quantity, price from made, asked
)
select id from made"""


class Handler(web.Handler):
    """An answer that needs the database."""

    def initialize(self, database: Database) -> None:
        """Tornado gives what `serve` names."""
        self.database = database

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
        given = (list(quantities), list(quantities.values()), str(wanted["reference"]), int(wanted["customer"]))
        async with self.database.connection() as connection:
            made = await connection.execute(_ORDER, (*given, wanted.get("note")))
            row = await made.fetchone()
            assert row
        self.set_status(201)
        self.write({"id": row["id"], "reference": wanted["reference"]})


async def _serve(place: Path) -> None:
    sandbox = Layout.find(place)
    assert sandbox, f"there is no sandbox in {place}"
    password = sandbox.secret("shop.password")
    known = {"port": sandbox.database_port, "dbname": "orders", "user": "shop", "password": password}
    parts = {"database": Database(lambda: names.resolve(sandbox), {**known, "application_name": "shop"})}
    await web.serve(sandbox.shop_port, [(r"/health", Health, parts), (r"/orders", Orders, parts)])


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
