"""Figures for Prometheus, in its text format (version 0.0.4, which node_exporter's textfile collector reads)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salvor import durable
from salvor.errors import CannotError, UsageError
from salvor.secrets import mask

_OURS = re.compile(r'salvor_([a-z]+)_\w+\{platform="([^"]*)"')
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Metric:
    """A gauge: its name, which ends in its unit (`salvor_backup_age_seconds`), what it means, and its samples, each
    with its labels.
    """

    name: str
    meaning: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def text(metrics: Iterable[Metric]) -> str:
    """The metrics in their order; one without samples is left out. Label values are masked.

    Raises ValueError for a name that Prometheus would refuse.
    """
    return "".join(f"{line}\n" for metric in metrics for line in _lines(metric))


def check_file(file: str, service: str) -> None:
    """Raises UsageError where the figures of one service are to be written to a file: it is of a whole platform, and
    those of the others would be gone from it.
    """
    if file and service:
        raise UsageError(
            "--prometheus=FILE writes the figures of a whole platform: those of its other services would be gone.",
            safe=f"{file} is as it was",
            hint="leave out --service; or --prometheus, without a file, prints what there is of one",
        )


def write(path: Path, metrics: Iterable[Metric]) -> None:
    """Put the metrics at `path`, the old ones or all of the new ones, mode 644: node_exporter is another user. Its name
    must end in `.prom` for the textfile collector to read it. Raises CannotError when that fails, or when something
    else is there: the figures of another platform or command, or no figures.
    """
    new = text(metrics)
    try:
        old = path.read_text(errors="replace") if path.is_file() else ""
        if lost := _whose(old) - _whose(new):
            raise CannotError(
                f"{path} holds {', '.join(sorted(lost))}, which would be gone.",
                safe="it is as it was",
                hint=f"write to another file; or, where nobody needs that any more: rm {shlex.quote(str(path))}",
            )
        durable.replace(path, new.encode(), mode=0o644)
    except OSError as error:
        raise CannotError(
            f"The figures cannot be written to {path}: {error.strerror}.",
            safe="the ones of before are as they were",
            hint=durable.mend(error, path.parent),
        ) from error


def _whose(said: str) -> set[str]:
    """Of which platform and command the figures in a file are."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("#")]
    found = [_OURS.match(line) for line in lines]
    return {f"the {one[1]} figures of {one[2]}" if one else "what is no figures of Salvor" for one in found}


def _lines(metric: Metric) -> Iterator[str]:
    names = [metric.name, *(name for labels, _ in metric.samples for name in labels)]
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} is no name for Prometheus")
    if metric.samples:
        yield f"# HELP {metric.name} {_escaped(metric.meaning)}"
        yield f"# TYPE {metric.name} gauge"
    for labels, value in metric.samples:
        pairs = ",".join(f'{name}="{_escaped(mask(value), quotes=True)}"' for name, value in labels.items())
        yield f"{metric.name}{f'{{{pairs}}}' if pairs else ''} {float(value)!r}"


def _escaped(text: str, *, quotes: bool = False) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if quotes else escaped
