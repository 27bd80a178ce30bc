"""Addresses as people write them: `HOST:PORT`, `[IPV6]:PORT`."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:/\[\]]+))(?::(\d{1,5}))?")


def host_and_port(text: str, default: int | None = None) -> tuple[str, int]:
    """The host and the port of `text`; `default` is the port that may be left out. Raises ValueError with the mend."""
    found = _ADDRESS.fullmatch(text)
    port = int(found[3]) if found and found[3] else default
    if not found or port is None or not 0 < port < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT, for example db1.example.com:5432 or [::1]:5432")
    return found[1] or found[2], port
