"""Every setting of the inventory and of checklists stands on the page that describes it, and no other does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from salvor.approval.settings import SecondPerson
from salvor.archive.settings import ArchivesSettings
from salvor.backups.policy import Expect, Keep
from salvor.checklist.form import Checklist, Item
from salvor.checks import Check
from salvor.files.settings import FilesSettings, RepositorySettings
from salvor.inventory.platform import Service
from salvor.on_a_machine import OnAMachineSettings
from salvor.postgres.settings import MemberSettings, OperatorSettings, PgBackRestSettings, PostgresSettings
from salvor.schedule.settings import Schedule
from salvor.ssh.settings import DoorSettings, JumpSettings, SshSettings
from salvor.status.settings import Notice, Page, Words
from salvor.systems.application import ApplicationSettings
from salvor.systems.cache import CacheSettings, RedisSettings
from salvor.systems.dns import DnsSettings, Key
from salvor.systems.host import HostSettings
from salvor.systems.outbox import Channel, OutboxSettings
from salvor.systems.route53 import Route53Settings
from salvor.watch.rules import Action, Call, Escalation, Metric, Rule

DOCS = Path(__file__).parents[1] / "docs"
INVENTORY: dict[str, tuple[type[BaseModel], ...]] = {
    "Services": (Service,),
    "Checks": (Check,),
    "Where a system is": (OnAMachineSettings, DoorSettings, JumpSettings, SshSettings),
    "postgres": (PostgresSettings, MemberSettings, OperatorSettings, PgBackRestSettings),
    "files": (FilesSettings, RepositorySettings),
    "application": (ApplicationSettings,),
    "cache": (CacheSettings, RedisSettings),
    "host": (HostSettings,),
    "dns and route53": (DnsSettings, Route53Settings, Key),
    "outbox": (OutboxSettings, Channel),
}
ELSEWHERE: dict[str, tuple[type[BaseModel], ...]] = {
    "approvals.md": (SecondPerson,),
    "archives.md": (ArchivesSettings,),
    "backups.md": (Keep, Expect, Schedule),
    "checklists.md": (Checklist, Item),
    "files.md": (RepositorySettings,),
    "status-page.md": (Page, Notice, Words),
    "watch.md": (Rule, Metric, Action, Escalation, Call),
}


def names(model: type[BaseModel]) -> set[str]:
    """The settings of a model, as they are written, without those that every model of its sort has."""
    everywhere = {"kind"} | ({"name"} if model in (Service, Checklist) else set())
    if issubclass(model, OnAMachineSettings) and model is not OnAMachineSettings:
        everywhere |= {"address", "ssh", "run_as"}
    return {field.alias or name for name, field in model.model_fields.items()} - everywhere


def parts_of(kind: Any) -> Iterator[type[BaseModel]]:
    """The models in a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from parts_of(field.annotation)
    for inner in get_args(kind):
        yield from parts_of(inner)


def section(heading: str) -> str:
    page = (DOCS / "inventory.md").read_text()
    return re.split(rf"^##+ {heading}$", page, flags=re.MULTILINE)[1].split("\n## ")[0].split("\n### ")[0]


@pytest.mark.parametrize("heading", INVENTORY)
def test_a_section_has_each_setting_of_its_models_and_no_other(heading: str) -> None:
    text = section(heading)
    settings = set().union(*map(names, INVENTORY[heading]))
    assert not settings - set(re.findall(r"`([a-z0-9_]+)`", text))
    tables = re.findall(r"^\| setting \|.*?\n((?:\|.*\n)+)", text, re.MULTILINE)
    shown = {
        name
        for table in tables
        for cell in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert not shown - settings


@pytest.mark.parametrize("page", ELSEWHERE)
def test_a_page_has_each_setting_of_its_models(page: str) -> None:
    text = (DOCS / page).read_text()
    settings = set().union(*map(names, ELSEWHERE[page]))
    assert not {name for name in settings if not re.search(rf"(?:`|\b){name}(?:`|:)", text)}


def test_no_model_is_left_out() -> None:
    described = {model for part in (INVENTORY, ELSEWHERE) for models in part.values() for model in models}
    tops = [PostgresSettings, FilesSettings, ApplicationSettings, CacheSettings, HostSettings, DnsSettings]
    tops += [Route53Settings, OutboxSettings, Service, Rule, Escalation, Schedule, Page, Notice, Checklist]
    assert {part for top in tops for part in parts_of(top)} <= described
    kinds = {path.stem for path in (DOCS.parent / "lib/salvor/systems").glob("[a-z]*.py")} - {"schedules"}
    assert kinds <= set(re.findall(r"\w+", " ".join(INVENTORY)))
