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
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

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


def acknowledged(path: Path, kind: str = "") -> list[tuple[str, datetime]]:
    """What was acknowledged (of one kind, where there are several): reference, and when the customer was told (UTC);
    oldest first.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as stream:
        # The last line may be half written.
        found = [json.loads(line) for line in stream if line.endswith("\n")]
    kept = [(one["reference"], clock.read_time(one["at"])) for one in found if one.get("kind", "") == kind]
    return sorted(kept, key=lambda one: one[1])


def summary(path: Path) -> tuple[int, str]:
    """How many orders were acknowledged, and when the newest was; quick, also after days."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return len(lines), json.loads(lines[-1])["at"] if lines else ""


def act_all_the_time(
    customers: Sequence[Callable[[], dict[str, Any] | None]], a_second: Sequence[float], kept: Path
) -> None:
    """Have each customer act so many times a second, for ever. What one returns was acknowledged, and is kept with the
    time; None was not.
    """
    file = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    threads = [
        threading.Thread(target=_repeat, args=(act, pace, file)) for act, pace in zip(customers, a_second, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _repeat(act: Callable[[], dict[str, Any] | None], a_second: float, file: int) -> None:
    next_one = clock.monotonic()
    while True:
        done = act()
        if done:
            os.write(file, (json.dumps({**done, "at": clock.write_time(clock.now())}) + "\n").encode())
        # After a stall it goes on at its pace; it does not catch up.
        next_one = max(next_one + 1 / a_second, clock.monotonic() + (0 if done else 0.1))
        time.sleep(max(0.0, next_one - clock.monotonic()))


class Line:
    """A customer's line to one application, which is dialled again when it broke."""

    def __init__(self, port: int) -> None:
        self._server = http.client.HTTPConnection("127.0.0.1", port, timeout=_DEADLINE)

    def post(self, path: str, content: dict[str, Any] | bytes, **headers: str) -> tuple[int, Any]:
        """The status (0: there was no answer) and what the answer's JSON says."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        try:
            self._server.request("POST", path, body, {"Content-Type": "application/json", **headers})
            answer = self._server.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            self._server.close()
            return 0, None


def _customer(sandbox: Layout) -> Callable[[], dict[str, Any] | None]:
    shop = Line(sandbox.shop_port)

    def place_order() -> dict[str, Any] | None:
        reference = str(uuid.uuid4())
        order = {
            "reference": reference,
            "customer": random.randint(1, 2000),
            "note": random.choice(_NOTES),
            "lines": [
                {"product": product, "quantity": random.randint(1, 5)} for product in random.sample(range(1, 401), 2)
            ],
        }
        status, _ = shop.post("/orders", order)
        return {"reference": reference} if status == 201 else None

    return place_order


def _run(place: Path) -> None:
    sandbox = Layout.find(place)
    assert sandbox, f"there is no sandbox in {place}"
    customers = [_customer(sandbox) for _ in range(_CUSTOMERS)]
    act_all_the_time(customers, [_ORDERS_A_SECOND] * _CUSTOMERS, sandbox.acknowledged)


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
