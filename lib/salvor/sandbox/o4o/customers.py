"""The stand-in's customers: they log in, order, pay and upload pictures all the time.

What was acknowledged to them is kept, with its kind: orders, payments or uploads. An upload's reference is its SHA-256.
"""

from __future__ import annotations

import hashlib
import random
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salvor.sandbox import writer
from salvor.sandbox.o4o.content import PICTURE, PRODUCTS
from salvor.sandbox.o4o.layout import Layout
from salvor.sandbox.writer import Line

ORDERS, PAYMENTS, UPLOADS = "orders", "payments", "uploads"
_A_SECOND = {ORDERS: 10.0, PAYMENTS: 10.0, UPLOADS: 2.0}
_PICTURE_BYTES = 8_000

Act = Callable[[], dict[str, Any] | None]


class _Customer:
    """Somebody with an account, who logs in again when the token is not taken."""

    def __init__(self, sandbox: Layout) -> None:
        self.lines = {name: Line(sandbox.port(name)) for name in ("auth", "api", "payments")}
        self.number = random.randint(1, 2000)
        self.token = ""
        self.unpaid: list[str] = []

    def ask(self, application: str, path: str, content: dict[str, Any] | bytes) -> bool:
        """Whether the application acknowledged it."""
        if not self.token:
            who = {"email": f"user{self.number}@example.com", "password": f"password-{self.number}"}
            status, said = self.lines["auth"].post("/login", who)
            if status != 200:
                return False
            self.token = said["token"]
        status, _ = self.lines[application].post(path, content, Authorization=self.token)
        if status == 400:
            self.token = ""
        return status == 201

    def order(self) -> dict[str, Any] | None:
        reference = str(uuid.uuid4())
        if not self.ask("api", "/orders", {"reference": reference, "product": random.randint(1, PRODUCTS)}):
            return None
        self.unpaid.append(reference)
        return {"kind": ORDERS, "reference": reference}

    def pay(self) -> dict[str, Any] | None:
        if not self.unpaid:
            return None
        reference = str(uuid.uuid4())
        if not self.ask("payments", "/payments", {"reference": reference, "order": self.unpaid[-1]}):
            return None
        return {"kind": PAYMENTS, "reference": reference}

    def upload(self) -> dict[str, Any] | None:
        picture = PICTURE + random.randbytes(_PICTURE_BYTES)
        reference = hashlib.sha256(picture).hexdigest()
        if not self.ask("api", f"/uploads/{reference}", picture):
            return None
        return {"kind": UPLOADS, "reference": reference}


def _run(place: Path) -> None:
    sandbox = Layout.find(place)
    assert sandbox, f"there is no stand-in in {place}"
    buyer, photographer = _Customer(sandbox), _Customer(sandbox)
    acts = {ORDERS: buyer.order, PAYMENTS: buyer.pay, UPLOADS: photographer.upload}
    writer.act_all_the_time(list(acts.values()), [_A_SECOND[kind] for kind in acts], sandbox.acknowledged)


if __name__ == "__main__":
    _run(Path(sys.argv[1]))
