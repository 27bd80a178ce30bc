"""Asks the sandbox's DNS server for the database's name all the time, and writes each change of its answer down.

A line a change: seconds since the epoch, and the address. A server that does not answer changes nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from salvor.errors import CannotError
from salvor.sandbox import names
from salvor.sandbox.layout import Layout

_BETWEEN = 0.02


def main(place: Path, out: Path) -> None:
    found = Layout.find(place)
    assert found
    last = ""
    with out.open("a", encoding="utf-8", buffering=1) as file:
        while True:
            try:
                address, _ = names.resolve(found)
            except CannotError:
                continue
            if address != last:
                file.write(f"{time.time():.6f} {address}\n")
                last = address
            time.sleep(_BETWEEN)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
