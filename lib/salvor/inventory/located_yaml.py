"""YAML that remembers where everything stood, so that an error can name file, line and column."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from salvor.errors import UsageError

Location = tuple[str | int, ...]
"""The way to a value: keys and list positions."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MOST_VALUES = 200_000
_PLAIN = ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in _PLAIN)
_MERGE = "tag:yaml.org,2002:merge"


@dataclass
class Document:
    """One file's plain data, and where each value stands (line and column, from 1); and where the variables stand that
    were left as they are.
    """

    path: Path
    data: Any = None
    places: dict[Location, tuple[int, int]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """`file:line:column` of a value, or of the nearest thing around it."""
        while location and location not in self.places:
            location = location[:-1]
        line, column = self.places.get(location, (1, 1))
        return f"{self.path}:{line}:{column}"


def read(path: Path, variables: Mapping[str, str] | None = None) -> Document:
    """Read one YAML file; `${name}` in strings stands for a variable, and is left as it is without `variables`.

    Raises UsageError with file, line and column for bad YAML, a key that stands twice, a tag, or an unknown variable.
    """
    document = Document(path)
    try:
        text = path.read_bytes().decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found = _Walk(document, variables).value(node, ()) if node is not None else None
        document.data = {} if found is None else found
    except OSError as error:
        raise UsageError(
            f"{path}:1:1: cannot be read: {error.strerror}.", hint=f"ls -ld {shlex.quote(str(path))}"
        ) from error
    except UnicodeDecodeError as error:
        line, column = _end_of(error.object[: error.start].decode("utf-8"))
        raise UsageError(
            f"{path}:{line}:{column}: this is not UTF-8.", hint="save the file as UTF-8; nothing was changed"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark, begun = error.problem_mark or error.context_mark, error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        since = f" begun at {begun.line + 1}:{begun.column + 1}" if begun and begun.line + 1 < line else ""
        problem = ", ".join(filter(None, [f"{error.context or ''}{since}", error.problem]))
        raise UsageError(
            f"{path}:{line}:{column}: this is not YAML: {problem}.",
            hint=f"{_mend(error.problem or '', since)}; nothing was changed",
        ) from error
    except yaml.reader.ReaderError as error:
        line, column = _end_of(text[: error.position])
        raise UsageError(
            f"{path}:{line}:{column}: the character {text[error.position]!r} is not allowed in YAML.",
            hint="remove it; nothing was changed",
        ) from error
    except RecursionError as error:
        raise UsageError(
            f"{path}:1:1: values are nested too deeply; an alias that contains itself?", hint="write the values out"
        ) from error
    return document


def _mend(problem: str, since: str) -> str:
    """What mends bad YAML: a parser notices a missing colon, bracket or quote only in what follows it."""
    if "'\\t'" in problem:
        return "put spaces in place of the tab"
    if "that cannot start any token" in problem:
        return "put the whole value in quotes"
    return f"mend that line, or what is{since}" if since else "mend that line, or the one before it"


def _end_of(text: str) -> tuple[int, int]:
    """The line and column, from 1, of what follows `text`."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


class _Walk:
    """Builds plain data from YAML nodes and notes their places."""

    def __init__(self, document: Document, variables: Mapping[str, str] | None) -> None:
        self.document = document
        self.variables = variables
        self.constructor = yaml.constructor.SafeConstructor()
        self.values = 0

    def value(self, node: yaml.Node, location: Location) -> Any:
        self.document.places[location] = (node.start_mark.line + 1, node.start_mark.column + 1)
        self.values += 1
        if self.values > _MOST_VALUES:
            raise UsageError(
                f"{self.document.place(location)}: more than {_MOST_VALUES} values; aliases that repeat aliases?",
                hint="write the values out",
            )
        if node.tag not in _TAGS:
            raise UsageError(
                f"{self.document.place(location)}: the tag {node.tag!r} is not allowed here.",
                hint="write the plain value, in quotes if it is text",
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        return self.scalar(node, location)

    def mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
            if key_node.tag not in _TAGS or not isinstance(key_node, yaml.ScalarNode):
                what = "merging by << is not done here" if key_node.tag == _MERGE else "a key must be a plain word"
                raise UsageError(f"{self.document.path}:{line}:{column}: {what}.", hint="write the settings out")
            key = str(key_node.value)
            here = (*location, key)
            if key in found:
                first = self.document.place(here)
                raise UsageError(
                    f"{self.document.path}:{line}:{column}: {key!r} stands twice; the first is at {first}.",
                    hint="remove or rename one of the two",
                )
            found[key] = self.value(value_node, here)
            self.document.places[here] = (line, column)
        return found

    def scalar(self, node: yaml.Node, location: Location) -> Any:
        try:
            value = self.constructor.construct_object(node)
        except (yaml.MarkedYAMLError, ValueError) as error:
            problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            raise UsageError(
                f"{self.document.place(location)}: {problem}.", hint="mend it, or put it in quotes if it is text"
            ) from error
        if not isinstance(value, str):
            # YAML 1.1 would turn 22:30 into a number of minutes and a date into a date; settings want what was written.
            return (
                value
                if isinstance(value, (bool, int, float, type(None))) and ":" not in str(node.value)
                else str(node.value)
            )
        if self.variables is None:
            for name in _VARIABLE.findall(value):
                self.document.left.setdefault(name, self.document.place(location))
            return value

        def variable(match: re.Match[str]) -> str:
            assert self.variables is not None
            if match[1] not in self.variables:
                known = ", ".join(sorted(self.variables)) or "none"
                raise UsageError(
                    f"{self.document.place(location)}: there is no variable {match[1]!r}.",
                    hint=f"the variables are: {known}",
                )
            return self.variables[match[1]]

        return _VARIABLE.sub(variable, value)
