"""Recoveries that somebody began and nobody brought to an end: what they stopped, no rule starts behind their back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from salvor import journal
from salvor.errors import CannotError
from salvor.journal import Journal, brief
from salvor.journal.folders import incidents_folder


def unfinished(platform: str, service: str, systems: Collection[str]) -> str:
    """The id of a recovery that stands unfinished: of `service`, or one that changed one of `systems`; else empty. One
    of the service whose opening cannot be read may be one.
    """
    for folder in journal.incidents(incidents_folder()):
        if brief.is_over(folder):
            continue
        is_by_name = brief.service_of(folder.name) == service
        try:
            read = Journal.read(folder)
        except CannotError:
            if is_by_name:
                return folder.name
            continue
        lines = read.lines
        first = lines[0] if lines else {}
        if is_by_name and first.get("kind") != "opened" and (lines or read.damaged):
            return folder.name
        if (first.get("purpose"), first.get("platform")) != ("incident", platform) or _is_back(lines):
            continue
        changed = {line["change"]["system"] for line in lines if line["kind"] == "intent"}
        if first["service"] == service or changed & set(systems):
            return folder.name
    return ""


def _is_back(lines: Iterable[Mapping[str, Any]]) -> bool:
    """Whether it brought its service back, and nobody is taking that back."""
    is_back = False
    for line in lines:
        if line["kind"] == "recovered":
            is_back = True
        elif line["kind"] in brief.OVER:
            return True
        elif line["kind"] == "intent" and line.get("undoing"):
            is_back = False
    return is_back
