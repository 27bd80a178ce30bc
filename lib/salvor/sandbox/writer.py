"""The sandbox's customers: they place orders in the shop all the time, and remember each that was acknowledged.

What is in that file is the truth that "no row lost" is measured against: an order is in it once the shop said 201.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path

from salvor import clock
from salvor.sandbox.layout import Layout

_CUSTOMERS = 2
_ORDERS_A_SECOND = 25  # of each customer
_DEADLINE = 6.0  # seconds; more than the shop's, so that the shop is the one to say no
_NOTES = (
    None,
    "문 앞에 놓아 주세요",
    "Please ring twice",
    "선물 포장 부탁드립니다",
    "Leave it with the neighbour, “No. 7”",
)


def acknowledged(path: Path) -> list[tuple[str, datetime]]:
    """The orders that the shop acknowledged: reference, and when the customer had the 201 (UTC); oldest first."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        # The last line may be half written.
        found = [json.loads(line) for line in stream if line.endswith("\n")]
    return sorted(((order["reference"], clock.read_time(order["at"])) for order in found), key=lambda order: order[1])


def summary(path: Path) -> tuple[int, str]:
    """How many orders were acknowledged, and when the newest was; quick, also after days."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return len(lines), json.loads(lines[-1])["at"] if lines else ""


def _place_orders(sandbox: Layout, file: int) -> None:
    shop = http.client.HTTPConnection("127.0.0.1", sandbox.shop_port, timeout=_DEADLINE)
    next_one = clock.monotonic()
    while True:
        reference = str(uuid.uuid4())
        order = {
            "reference": reference,
            "customer": random.randint(1, 2000),
            "note": random.choice(_NOTES),
            "lines": [
                {"product": product, "quantity": random.randint(1, 5)} for product in random.sample(range(1, 401), 2)
            ],
        }
        try:
            shop.request("POST", "/orders", json.dumps(order), {"Content-Type": "application/json"})
            answer = shop.getresponse()
            answer.read()
            done = answer.status == 201
        except (OSError, http.client.HTTPException):
            shop.close()
            done = False
        if done:
            line = {"reference": reference, "at": clock.write_time(clock.now())}
            os.write(file, (json.dumps(line) + "\n").encode())
        # After a stall it goes on at its pace; it does not catch up.
        next_one = max(next_one + 1 / _ORDERS_A_SECOND, clock.monotonic() + (0 if done else 0.1))
        time.sleep(max(0.0, next_one - clock.monotonic()))


def _run(place: Path) -> None:
    sandbox = Layout.find(place)
    assert sandbox, f"there is no sandbox in {place}"
    file = os.open(sandbox.acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    customers = [threading.Thread(target=_place_orders, args=(sandbox, file)) for _ in range(_CUSTOMERS)]
    for customer in customers:
        customer.start()
    for customer in customers:
        customer.join()


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
