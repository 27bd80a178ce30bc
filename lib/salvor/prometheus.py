"""Figures for Prometheus, in its text format (version 0.0.4, which node_exporter's textfile collector reads)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salvor import durable
from salvor.secrets import mask

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


def write(path: Path, metrics: Iterable[Metric]) -> None:
    """Put the metrics at `path`, the old ones or all of the new ones, mode 644: node_exporter is another user. Raises
    OSError. Its name must end in `.prom` for the textfile collector to read it.
    """
    durable.replace(path, text(metrics).encode(), mode=0o644)


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
