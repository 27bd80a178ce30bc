"""The files of a platform, read and merged by section; what is wrong in one of them is said with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from salvor.errors import UsageError
from salvor.inventory import located_yaml
from salvor.inventory.located_yaml import Document, Location
from salvor.inventory.platform import check_name

SECTIONS = ("systems", "services", "watch", "escalation", "schedules", "notices")
"""What maps names to settings, from any of the files."""

_Model = TypeVar("_Model", bound=BaseModel)
ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
"""What `variables_from` takes from the environment: `${NAME}` or `${NAME:-else}`."""


def read(path: Path) -> Document:
    """One file, with the variables that it names in `variables_from`. Raises UsageError with the place and the mend."""
    raw = located_yaml.read(path)
    source = raw.data.get("variables_from") if isinstance(raw.data, dict) else None
    if source is None:
        for name, place in raw.left.items():
            raise UsageError(
                f"{place}: the variable {name!r} is not defined: this file has no variables_from.",
                hint=f"add variables_from: FILE, which holds {name}: VALUE (each file names its own); "
                f"if a shell is to put it in, write ${name}",
            )
        return raw
    place = raw.place(("variables_from",))
    expanded = Path(ENVIRONMENT.sub(lambda match: os.environ.get(match[1]) or match[2] or "", str(source))).expanduser()
    if not expanded.is_file():
        from salvor.sandbox.platforms import PACKAGES

        platform = path.parent.name
        up = f"start its stand-in: inv sandbox.up --platform={platform}"
        hint = up if platform in PACKAGES else f"write that file, or mend {place}"
        raise UsageError(f"{place}: the variables file {expanded} is not there.", hint=hint)
    return located_yaml.read(path, _variables(located_yaml.read(expanded)))


def _variables(document: Document) -> dict[str, str]:
    """The variables that a file defines: names and plain values."""
    if not isinstance(document.data, dict):
        raise UsageError(f"{document.place(())}: a variables file is a mapping.", hint="write one name: value a line")
    for name, value in document.data.items():
        if value is None or isinstance(value, (dict, list)):
            raise UsageError(
                f"{document.place((name,))}: {name!r} needs one plain value.", hint=f'write {name}: "value"'
            )
    return {name: str(value) for name, value in document.data.items()}


class Sections:
    """What the files of a platform say together: `title`, `status`, and the entries of each section by name.

    Raises UsageError for an unknown section, a name that stands twice or is none, and what is no mapping.
    """

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.title = ""
        self.status: dict[str, Any] = {}
        self.entries: dict[str, dict[str, dict[str, Any]]] = {section: {} for section in SECTIONS}
        self._where: dict[Location, Document] = {}
        for document in documents:
            self._merge(document)

    def refuse(self, location: Location, what: str, hint: str) -> NoReturn:
        """Raise the error of a place: what is wrong there, and the mend."""
        document = self._where.get(location[:2]) or self.documents[0]
        raise UsageError(f"{document.place(location)}: {what}", hint=hint)

    def validate(self, model: type[_Model], entry: dict[str, Any], location: Location) -> _Model:
        """The model that an entry describes. Raises UsageError at the setting that is wrong."""
        try:
            return model.model_validate(entry)
        except ValidationError as error:
            first = _most_telling(error.errors(include_url=False))
        inner = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
        label = ".".join(str(part) for part in inner) or location[-1]
        place = (*location, *inner)
        if first["type"] == "extra_forbidden":
            known = _settings_at(model, inner[:-1])
            meant = get_close_matches(str(inner[-1]), known, 1)
            hint = f"did you mean {meant[0]}:?" if meant else f"the settings are: {', '.join(known)}"
            if not meant and first["input"] is None:
                hint = f"is it a part of the text before it? Put all of that text in quotes; else {hint}"
            self.refuse(place, f"{label}: there is no such setting.", hint)
        if first["type"] == "missing":
            self.refuse(
                place, f"{label}: this setting is missing.", f"add {inner[-1]}: to {_owner(location[-1], inner)}"
            )
        if first["type"] == "tuple_type":
            self.refuse(place, f"{label}: this is no list.", "put it in brackets: [ONE], [ONE, ANOTHER]")
        hint = "put it in quotes if it is text" if first["type"] == "string_type" else "mend that value"
        if first["input"] is None and inner and isinstance(inner[-1], str):
            hint = f"write a value behind {inner[-1]}:, or remove it"
        self.refuse(place, f"{label}: {first['msg'].removeprefix('Value error, ')}.", hint)

    def _merge(self, document: Document) -> None:
        if not isinstance(document.data, dict):
            raise UsageError(
                f"{document.place(())}: a platform's file is a mapping.", hint="begin with systems: and services:"
            )
        for section, content in document.data.items():
            if section == "title":
                self.title = str(content)
            elif section == "status" and isinstance(content, dict):
                self._where |= {("status", name): document for name in content}
                self.status |= content
            elif section in self.entries:
                self._merge_section(document, section, content)
            elif section != "variables_from":
                raise UsageError(
                    f"{document.place((section,))}: {section!r} is not known here.",
                    hint=f"the sections are title, variables_from, status, {', '.join(SECTIONS)}",
                )

    def _merge_section(self, document: Document, section: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise UsageError(
                f"{document.place((section,))}: {section} maps names to their settings.",
                hint=f"write each name below {section}:, indented, or remove {section}:",
            )
        for name, entry in content.items():
            location = (section, name)
            if location in self._where:
                first = self._where[location].place(location)
                raise UsageError(
                    f"{document.place(location)}: {name!r} stands twice; the first is at {first}.",
                    hint="remove or rename one of the two",
                )
            self._where[location] = document
            try:
                check_name(name)
            except ValueError as error:
                raise UsageError(f"{document.place(location)}: {error}.", hint="rename it") from error
            if not isinstance(entry, dict):
                raise UsageError(
                    f"{document.place(location)}: {name!r} needs its settings, as a mapping.",
                    hint=f"write one setting: value a line below {name}:, indented",
                )
            self.entries[section][name] = entry


def _owner(name: object, inner: Sequence[int | str]) -> str:
    """What lacks a setting, in words: `web`, or `healthy of web`."""
    return f"{'.'.join(map(str, inner[:-1]))} of {name}" if len(inner) > 1 else f"{name}"


def _most_telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first error; of a setting that is missing where another is misspelt, the one of the latter."""
    misspelt = (one for one in errors if one["type"] == "extra_forbidden" and one["loc"][:-1] == errors[0]["loc"][:-1])
    return next(misspelt, errors[0]) if errors[0]["type"] == "missing" else errors[0]


def _settings_at(model: type[BaseModel], path: Iterable[int | str]) -> list[str]:
    """The settings that there are at `path` within `model`."""
    models = [model]
    for part in path:
        fields = [info for one in models for field, info in one.model_fields.items() if part in (field, info.alias)]
        models = [inner for info in fields for inner in _models_in(info.annotation)] or models
    known = {info.alias or field: None for one in models for field, info in one.model_fields.items()}
    return [field for field in known if field != "name" or models != [model]]


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
