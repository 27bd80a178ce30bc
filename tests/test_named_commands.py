"""Every command of `inv` that an error, a page, a runbook or a notebook names exists, and has the options it names."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from invoke.context import Context
from invoke.exceptions import ParseError
from invoke.parser.context import ParserContext
from invoke.parser.parser import Parser
from salvor.archive.vetting import TRUST_ARCHIVE
from salvor.arguments import wish
from salvor.commands import command
from salvor.commands.everything import namespace
from salvor.commands.hints import whole
from salvor.commands.mistyped import find
from salvor.errors import MAKE_ROOM, CannotError, UsageError
from salvor.postgres.logical import TRUST_DUMP
from salvor.postgres.replay import ACCEPT_MISSING_WAL
from salvor.sandbox import platforms
from salvor.wish import PROMOTE_WITHOUT_FENCE

ROOT = Path(__file__).parents[1]
CONTEXTS = {name: context for context in namespace.to_contexts() for name in (context.name, *context.aliases)}
PLACEHOLDER = "WHATEVER"  # stands where a string is filled in when it is said


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, each f-string whole."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        else:
            yield from strings(node)


def texts() -> Iterator[tuple[str, str]]:
    """Where something is said, and what."""
    for path in sorted([*(ROOT / "lib/salvor").rglob("*.py"), *(ROOT / "runbooks").glob("*.py")]):
        if "inv " in (source := path.read_text()):
            for text in strings(ast.parse(source)):
                yield str(path.relative_to(ROOT)), text
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            yield path.name, "".join(cell["source"])
    pages = [ROOT / "README.md", ROOT / "start"]
    for folder, name in (("docs", "*.md"), ("runbooks", "*.yaml"), ("inventory", "*.yaml"), ("lib/salvor", "*.yaml")):
        pages += (ROOT / folder).rglob(name)
    for path in sorted([*pages, *(ROOT / "lib/salvor/pages/templates").iterdir()]):
        yield str(path.relative_to(ROOT)), path.read_text()


def wrong(task: str, options: str) -> str:
    """What `inv TASK OPTIONS` has that does not exist; empty when all of it does."""
    if task not in CONTEXTS:
        return f"there is no inv {task}"
    flags = CONTEXTS[task].flags
    for name, equals in re.findall(r"(--[a-z][a-z-]*)(=?)", re.sub(r"'[^']*'|\"[^\"]*\"", "", options)):
        if name not in flags:
            return f"inv {task} has no {name}"
        if bool(equals) != flags[name].takes_value and not flags[name].optional:
            return f"inv {task} {name} takes {'a' if flags[name].takes_value else 'no'} value"
    return ""


def test_every_command_that_is_named_exists_with_its_options() -> None:
    """Also in the midst of a sentence: a word after `inv` is a task, and the options that follow are its own."""
    named = [
        (where, wrong(task.rstrip("."), options))
        for where, text in texts()
        for task, options in re.findall(
            r"(?<![\w/.-])inv +([a-z][a-z._]*)((?: +--(?:[a-z][\w-]*)(?:=(?:'[^']*'|\"[^\"]*\"|[^\s'\"`<]+))?)*)", text
        )
        if task not in ("and", "is", "would") and not task.endswith("sandbox.")  # words about inv, and a name to come
    ]
    assert len(named) > 300
    assert not [said for said in named if said[1]]


def test_every_command_that_a_page_shows_is_understood() -> None:
    """A line of its own is parsed as invoke parses it: words, values and all."""
    lines = [
        (str(path.relative_to(ROOT)), line.group(1).split("  #")[0].split(" # ")[0])
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for line in re.finditer(r"^ {4}(inv .*)$", path.read_text().replace("\\\n", ""), re.MULTILINE)
    ]
    assert len(lines) > 50
    tasks, refused = namespace.to_contexts(), []
    for where, line in lines:
        try:
            Parser(tasks, ParserContext()).parse_argv(shlex.split(line, comments=True)[1:])
        except ParseError as error:
            refused.append((where, line, str(error)))
    assert not refused


def test_every_schedule_and_item_that_a_page_shows_is_a_command() -> None:
    """`run: [WORD, ...]` of schedules and checklists is an argument list for inv."""
    runs = []
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "runbooks").glob("*.yaml")]:
        runs += [(path.name, yaml.safe_load(words)) for words in re.findall(r"run: (\[[a-z].*?\])", path.read_text())]
    assert len(runs) > 10
    assert not [(where, found) for where, words in runs if (found := wrong(words[0], " ".join(words[1:])))]


def test_every_override_that_is_named_is_taken() -> None:
    shown = {name for _, text in texts() for name in re.findall(r"--override=['\"]?([a-z][a-z:-]+)", text)}
    assert len(shown) >= 3
    for name in {TRUST_ARCHIVE, TRUST_DUMP, ACCEPT_MISSING_WAL, PROMOTE_WITHOUT_FENCE, *shown}:
        whole_name = f"{name}db-a" if name.endswith(":") else name
        assert wish(override=f"{whole_name}=a ransom note was found")[0].override(whole_name)


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("look again: inv assess", "look again: inv assess --service=orders --platform=shop"),
        ("inv backups --service=a, then inv restore --service=a --from=ID", None),
        (
            "bring it back: inv restore; or inv undo",
            "bring it back: inv restore --service=orders --platform=shop; or inv undo --incident=I",
        ),
        ("inv backups --check --platform=other", "inv backups --check --platform=other"),
        ("inv checklist daily --platform=other", "inv checklist daily --platform=other"),
        (
            "inv undo, then inv restore without --at, or later",
            "inv undo --incident=I, then inv restore --service=orders --platform=shop without --at, or later",
        ),
        (
            "inv restore --from=ID. What is damaged: v1.2",
            "inv restore --from=ID --service=orders --platform=shop. What is damaged: v1.2",
        ),
        ("inv restore --from=/b/o.sql.gz", "inv restore --from=/b/o.sql.gz --service=orders --platform=shop"),
        ("inv hosts.run -- uptime", "inv hosts.run --platform=shop -- uptime"),
        ("inv incidents lists them", "inv incidents lists them"),
        ("inv incident.show --incident=J", "inv incident.show --incident=J"),
        ("inv watch.ack --episode=J", "inv watch.ack --episode=J"),
        (MAKE_ROOM, MAKE_ROOM),
    ],
)
def test_a_hint_names_what_was_asked_for(hint: str, said: str | None) -> None:
    """Two platforms may have a service of one name, and who names none gets another one."""
    said = said or "inv backups --service=a --platform=shop, then inv restore --service=a --from=ID --platform=shop"
    assert whole(hint, service="orders", platform="shop", incident="I") == said


def test_the_hint_of_a_command_that_fails_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    def body(c: Context, service: str = "", platform: str = "") -> None:
        raise CannotError("It cannot.", hint="inv assess")

    with pytest.raises(SystemExit):
        command()(body)(Context(), service="orders", platform="shop")
    assert capsys.readouterr().err.endswith("HINT: inv assess --service=orders --platform=shop\n")


@pytest.mark.parametrize(
    ("typed", "what", "hint"),
    [
        ("restore orders", "inv restore takes no 'orders'.", "inv restore --service=orders"),
        (
            "undo 20261121T190607Z-orders-6035",
            "inv undo takes no '20261121T190607Z-orders-6035'.",
            "inv undo --incident=20261121T190607Z-orders-6035",
        ),
        ("restore --service=orders now", "inv restore takes no 'now'.", "inv --help restore tells what it takes"),
        ("restore --form=latest", "inv restore has no option --form.", "did you mean --from?"),
        ("undo --service=orders", "inv undo has no option --service.", "inv undo --incident=ID; inv incidents lists"),
        ("--service=orders restore", "There is no inv --service.", "options follow the command: inv restore --serv"),
        ("restore --service=", "--service= is empty.", "leave it out, or say which"),
        ("restore --failed-at ''", "--failed-at= is empty.", "leave it out, or say which"),
        ("restore --override --plan", "--override needs a value.", "--override=VALUE; inv --help restore"),
        ("incident.shwo", "There is no inv incident.shwo.", "did you mean inv incident.show?"),
        ("sandbox.break", "inv sandbox.break needs DISASTER.", "inv --help sandbox.break"),
        ("qqqqq", "There is no inv qqqqq.", "inv --list names the commands"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(typed: str, what: str, hint: str) -> None:
    mistake = find(shlex.split(typed))
    assert mistake and mistake.what == what and mistake.hint.startswith(hint)


@pytest.mark.parametrize(
    "typed",
    ["", "--list", "--help restore", "restore --help", "--complete -- inv restore --serv", "backups --check",
     "hosts.run --limit=a -- env A= --b=", "assess --service=a restore --service=a"],
)  # fmt: skip
def test_what_is_typed_well_is_no_mistake(typed: str) -> None:
    assert find(typed.split()) is None


def test_every_file_that_a_page_names_is_there() -> None:
    """Links, with the heading that they lead to, and paths of the project."""
    missing = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
            there = page.parent / target if target else page
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if heading and there.is_file() else []
            known = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            if not there.exists() or (heading and heading not in known):
                missing.append((page.name, target, heading))
        for path in re.findall(
            r"(?<![\w/.-])(?:lib|tests|docs|notebooks|runbooks|benchmarks|inventory)/[\w/.-]*\w", text
        ):
            if "NAME" not in path and not (ROOT / path).exists():
                missing.append((page.name, path, ""))
        for module in re.findall(r"python -m (tests[\w.]*)", text):
            if not (ROOT / f"{module.replace('.', '/')}.py").exists():
                missing.append((page.name, module, ""))
    assert not missing


def test_the_stand_in_that_is_meant_is_of_the_platform_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platforms.package("").__name__ == "salvor.sandbox"
    monkeypatch.setenv("SALVOR_PLATFORM", "o4o")
    assert platforms.package("").__name__ == "salvor.sandbox.o4o"
    assert platforms.package("sandbox").__name__ == "salvor.sandbox"
    monkeypatch.setenv("SALVOR_PLATFORM", "prod")
    with pytest.raises(UsageError, match="'prod' has no stand-in to be broken"):
        platforms.package("")
