"""A line of the journal: what it may hold, its bytes, its hash."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from salvor import clock

START = "0" * 64
"""What the first line has as the hash of the line before it."""


def digest(line: bytes) -> str:
    """The SHA-256 of a line's bytes without its newline, 64 hex digits: what `sha256sum` says of them."""
    return hashlib.sha256(line).hexdigest()


def split(content: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a journal, without their newlines, and what a crash left of one after them."""
    *lines, rest = content.split(b"\n")
    return lines, rest


def parse(line: bytes) -> dict[str, Any] | None:
    """What a line says; None when it is not one JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# DEL and the C1 controls, which a terminal obeys; marks that turn the direction of text or are not seen; halves of
# surrogate pairs, which file names that are not UTF-8 bring along. JSON allows all of them as escapes.
_ESCAPED = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def encode(line: Mapping[str, Any]) -> bytes:
    """The bytes of a line without its newline. They hold no control character, so that a terminal can show them."""
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def plain(value: Any) -> Any:
    """`value` as JSON can carry it: a line of the journal is never refused for what it holds."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN
    if isinstance(value, (dict, Mapping)):  # `dict` first: it is what nearly all are, and much quicker to tell
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return clock.write_time(value) if isinstance(value, datetime) else str(value)
