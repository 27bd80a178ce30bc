"""The inventory: what is right is read; what is wrong is said with file, line, column and the mend."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from salvor import inventory
from salvor.errors import UsageError
from salvor.inventory import located_yaml

GOOD = """\
title: A platform
systems:
  orders-db:
    kind: folder
    root: /srv/orders
  orders-dns: {kind: pointer, path: /srv/sign, leads_to: orders-db}
  people: {kind: letters, path: /srv/letters}
services:
  auth: {rto: 5m, rpo: 0, systems: [orders-db]}
  orders:
    title: Orders
    rto: 15m
    rpo: 30s
    depends_on: [auth]
    systems: [orders-db]
    routes: [orders-dns]
    messages: people
    checks:
      - {name: orders are there, system: orders-db, sql: select 1, at_least: 1}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> Path:
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path))
    return tmp_path


def write(home: Path, text: str | bytes, name: str = "ours.yaml") -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(name: str = "ours") -> UsageError:
    with pytest.raises(UsageError) as error:
        inventory.load(name)
    assert error.value.exit_code == 2
    assert error.value.hint
    return error.value


def test_what_is_described_is_read(home: Path) -> None:
    write(home, GOOD)
    ours = inventory.load("ours")
    assert (ours.name, ours.title) == ("ours", "A platform")
    assert list(ours.services) == ["auth", "orders"]
    orders = ours.service("orders")
    assert (orders.rto, orders.rpo, orders.depends_on, orders.routes) == (900.0, 30.0, ("auth",), ("orders-dns",))
    assert orders.checks[0].system == "orders-db"
    assert inventory.names() == ["ours"]


def test_a_folder_of_files_is_one_platform(home: Path) -> None:
    systems, services = GOOD.split("services:\n")
    write(home, systems, "ours/1-systems.yaml")
    write(home, f"services:\n{services}", "ours/2-services.yaml")
    write(home, "not: [yaml", "ours/.#2-services.yaml")
    write(home, "anything", "ours/README.md")
    (home / ".git").mkdir()
    assert list(inventory.load("ours").services) == ["auth", "orders"]
    assert inventory.names() == ["ours"]


def test_a_service_that_is_not_there(home: Path) -> None:
    write(home, GOOD)
    with pytest.raises(UsageError, match="--service: the platform 'ours' has no service 'order'") as error:
        inventory.load("ours").service("order")
    assert error.value.hint == "its services are: auth, orders"


def test_a_platform_that_is_not_there(home: Path) -> None:
    write(home, GOOD)
    assert "there is no platform 'theirs'" in refused("theirs").what
    assert refused("theirs").hint == "the platforms are: ours"
    for name in ("../ours", "/etc", "", "a b", "-x", "Ours", "x" * 64, "o\nurs"):
        assert "is not a name" in refused_name(name).what


def refused_name(name: str) -> UsageError:
    with pytest.raises(UsageError, match=r"^--platform: ") as error:
        inventory.load(name)
    return error.value


def test_a_home_that_is_not_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALVOR_INVENTORY", str(home / "nowhere"))
    assert inventory.names() == []
    assert "the platforms are: none" in refused().hint


def test_a_folder_without_files(home: Path) -> None:
    (home / "ours").mkdir()
    assert "no file in" in refused().what
    assert refused().hint.endswith("/ours/platform.yaml")


def test_a_file_that_would_not_be_read(home: Path) -> None:
    write(home, GOOD, "theirs.yml")
    assert refused("theirs").hint == f"mv {home}/theirs.yml {home}/theirs.yaml"
    write(home, GOOD, "ours/systems.yaml")
    write(home, "watch: {}\n", "ours/watch.yml")
    assert refused().what == f"--platform: {home}/ours/watch.yml would not be read: its name must end in .yaml."


def test_a_platform_that_describes_nothing(home: Path) -> None:
    path = write(home, "title: cut off by a full disk\n")
    assert refused().what == f"{path}:1:1: the platform 'ours' has no systems and no services."


def test_a_platform_that_is_described_twice(home: Path) -> None:
    write(home, GOOD)
    write(home, GOOD, "ours/platform.yaml")
    assert "described twice" in refused().what


def test_a_platform_without_services(home: Path) -> None:
    write(home, GOOD.split("services:\n")[0])
    with pytest.raises(UsageError, match="no service 'orders'"):
        inventory.load("ours").service("orders")


# One wrong thing each: what of GOOD is replaced, by what; where it is (line and column), what is wrong, and the mend.
WRONG = [
    ("title: A platform", "titel: A platform", "1:1", "'titel' is not known here", "sections are title"),
    (
        "title: A platform",
        "title: [",
        "3:12",
        "a flow sequence begun at 1:8, expected",
        "line, or what is begun at 1:8",
    ),
    ("title: A platform", "title A platform", "2:8", "not YAML", "mend that line, or the one before it"),
    ("title: A platform", "title:\tA platform", "1:7", "not YAML", "put spaces in place of the tab"),
    ("title: A platform", "title: @platform", "1:8", "not YAML", "put the whole value in quotes"),
    ("title: A platform", "title: \x01", "1:8", "the character '\\x01' is not allowed", "remove it"),
    ("title: A platform", "title: !!python/object/apply:os.system [ls]", "1:8", "the tag ", "plain value"),
    ("title: A platform", "title: !secret x", "1:8", "the tag '!secret' is not allowed", "plain value"),
    ("title: A platform", "title: !!binary aGk=", "1:8", "the tag ", "plain value"),
    ("title: A platform", "title: !!int no", "1:8", "invalid literal", "in quotes"),
    ("title: A platform", "? [a, b]\n: x", "1:3", "a key must be a plain word", "write the settings out"),
    ("title: A platform", "title: x\n---\ntitle: y", "2:1", "expected a single document", "mend"),
    ("systems:\n", "systems: []\nsystem:\n", "2:1", "systems maps names to their settings", "below systems:"),
    ("systems:\n", "systems:\nothers:\n", "2:1", "systems maps names to their settings", "or remove systems:"),
    ("  orders-db:\n", "  Orders_DB:\n", "3:3", "'Orders_DB' is not a name", "rename it"),
    ("  orders-db:\n", "  x:\n  orders-db:\n", "3:3", "'x' needs its settings", "indented"),
    ("    kind: folder\n", "", "3:3", "the system 'orders-db' has no kind", "add kind:"),
    ("kind: folder", "kind: floder", "4:5", "there is no kind of system 'floder'", "the kinds are"),
    ("kind: folder", "kind: ../x", "4:5", "there is no kind of system '../x'", "the kinds are"),
    (
        "kind: folder",
        "kind: folder\n    kind: folder",
        "5:5",
        "'kind' stands twice; the first is at",
        "remove or rename",
    ),
    ("    root: /srv/orders\n", "", "3:3", "root: this setting is missing", "add root: to orders-db"),
    (
        "root: /srv/orders",
        "root: /srv\n    rot: x",
        "6:5",
        "rot: there is no such setting",
        "did you mean root:?",
    ),
    ("root: /srv/orders", "roots: /srv", "5:5", "roots: there is no such setting", "did you mean root:?"),
    ("root: /srv/orders", "root: /srv\n    x: x", "6:5", "x: there is no such setting", "the settings are: kind, root"),
    (
        "sql: select 1, at_least",
        "sql: select 1, at_leats",
        "19:68",
        "checks.0.at_leats: there is no",
        "mean at_least:?",
    ),
    ("sql: select 1, at_least", "sql: select 1, limit", "19:68", "checks.0.limit: there is no", "are: name, sql, ask"),
    (
        "sql: select 1, at_least",
        "sql: select 1, 2, at_least",
        "19:68",
        "checks.0.2: there is no",
        "Put all of that text",
    ),
    (
        "name: orders are there, ",
        "",
        "19:9",
        "checks.0.name: this setting is missing",
        "add name: to checks.0 of orders",
    ),
    ("root: /srv/orders", "root: [a]", "5:5", "root: ", ""),
    ("root: /srv/orders", "<<: {root: x}", "5:5", "merging by << is not done here", "write the settings out"),
    ("leads_to: orders-db", "leads_to: order-db", "6:48", "there is no system 'order-db'", "known are: orders-db"),
    (
        "leads_to: orders-db",
        "leads_to: orders-dns",
        "6:48",
        "leads_to is a loop: orders-dns -> orders-dns",
        "remove one",
    ),
    ("rto: 5m", "rto: 5 minutes", "9:10", "is not a duration", "mend"),
    ("rto: 5m", "rto: -5", "9:10", "cannot be a duration", "mend"),
    ("rto: 5m", "rto: .nan", "9:10", "cannot be a duration", "mend"),
    ("rto: 5m", "rto: .inf", "9:10", "cannot be a duration", "mend"),
    ("rto: 5m", "rto: yes", "9:10", "is not a duration", "mend"),
    ("rto: 5m", "rto:", "9:10", "is not a duration", "write a value behind rto:, or remove it"),
    ("rto: 5m, ", "", "9:3", "rto: this setting is missing", "add rto: to auth"),
    ("systems: [orders-db]}", "systems: []}", "9:3", "lives in no system and in no application", "what it is made of"),
    ("systems: [orders-db]}", "systems: [orders-db], applications: [orders-db]}", "9:64", "is no program", "remove it"),
    ("systems: [orders-db]}", "systems: orders-db}", "9:27", "systems: this is no list", "put it in brackets: [ONE]"),
    ("systems: [orders-db]}", "systems: [no]}", "9:37", "valid string", "in quotes"),
    (
        "systems: [orders-db]}",
        "systems: [orders-dns]}",
        "9:37",
        "'orders-dns' is a pointer: it holds no data",
        "remove it",
    ),
    ("systems: [orders-db]}", "systems: [orders-db, orders-db]}", "9:48", "'orders-db' stands twice", "remove one"),
    ("systems: [orders-db]}", "systems: [orders]}", "9:37", "there is no 'orders'", "orders-db, orders-dns, people"),
    ("title: Orders", "title: yes", "11:5", "valid string", "in quotes"),
    ("title: Orders", "name: others", "11:5", "the service is 'orders' already", "remove name:"),
    ("title: Orders", "tier: 0", "11:5", "tier: ", "mend"),
    ("depends_on: [auth]", "depends_on: [auht]", "14:18", "there is no 'auht'", "known are: auth, orders"),
    ("depends_on: [auth]", "depends_on: [orders]", "14:5", "depends_on is a loop: orders -> orders", "remove one"),
    ("rpo: 0,", "rpo: 0, depends_on: [orders],", "9:27", "loop: auth -> orders -> auth", "remove one"),
    ("routes: [orders-dns]", "routes: [people]", "16:14", "it is no route", "remove it from routes"),
    ("messages: people", "messages: orders-db", "17:5", "it sends no messages", "remove it from messages"),
    ("messages: people", "messages: peple", "17:5", "there is no 'peple'", "known are"),
    (
        "system: orders-db, sql",
        "system: auth-db, sql",
        "19:34",
        "'orders' does not live in 'auth-db'",
        "its systems are",
    ),
    ("sql: select 1, at_least: 1", "sql: select 1", "19:9", "could not fail", "mend"),
    ("sql: select 1,", "ask: files,", "19:53", "it is asked by sql, not by ask", "write sql:"),
    (
        "at_least: 1}",
        "at_least: 1}\n      - {name: orders are there, tcp: 'h:1'}",
        "20:10",
        "stands twice",
        "rename one",
    ),
    ("at_least: 1}", "at_least: 1}\n      - {name: web, tcp: 'h:99999'}", "20:21", "99999", "mend"),
    ("at_least: 1}", "at_least: 1, deadline: 0}", "19:81", "deadline: ", "mend"),
    ("at_least: 1}", "at_least: 2026-13-45}", "19:78", "month must be in 1..12", "in quotes"),
]


@pytest.mark.parametrize(("old", "new", "place", "what", "mend"), WRONG, ids=[each[1][:30] for each in WRONG])
def test_a_mistake_is_placed(home: Path, old: str, new: str, place: str, what: str, mend: str) -> None:
    assert GOOD.count(old) == 1
    path = write(home, GOOD.replace(old, new))
    error = refused()
    assert error.what.startswith(f"{path}:{place}: ")
    assert what in error.what
    assert mend in error.hint


def test_what_is_not_utf8_is_placed(home: Path) -> None:
    path = write(home, GOOD.replace("Orders", "Größe").encode("latin-1"))
    assert refused().what == f"{path}:11:14: this is not UTF-8."


def test_a_byte_order_mark_and_windows_lines_are_read(home: Path) -> None:
    write(home, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert list(inventory.load("ours").services) == ["auth", "orders"]


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "~\n"])
def test_an_empty_file_describes_nothing(home: Path, text: str) -> None:
    write(home, GOOD, "ours/1.yaml")
    write(home, text, "ours/2.yaml")
    assert list(inventory.load("ours").services) == ["auth", "orders"]


@pytest.mark.parametrize("text", ["just words", "- a\n- b\n", "5"])
def test_a_file_that_is_no_mapping(home: Path, text: str) -> None:
    path = write(home, text)
    assert refused().what == f"{path}:1:1: a platform's file is a mapping."


def test_the_same_name_in_two_files(home: Path) -> None:
    first = write(home, GOOD, "ours/1.yaml")
    second = write(home, "services:\n  orders: {rto: 1m, rpo: 1m, systems: [orders-db]}\n", "ours/2.yaml")
    assert refused().what == f"{second}:2:3: 'orders' stands twice; the first is at {first}:10:3."


def test_an_error_in_the_second_file_names_it(home: Path) -> None:
    write(home, GOOD, "ours/1.yaml")
    second = write(home, "services:\n  shop: {rto: 1m, rpo: 1m, systems: [orders-db, shop-db]}\n", "ours/2.yaml")
    assert refused().what.startswith(f"{second}:2:49: ")


def test_a_file_that_cannot_be_read(home: Path) -> None:
    (home / "ours.yaml").mkdir()
    assert refused().what == f"{home}/ours.yaml:1:1: cannot be read: Is a directory."


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.timeout(30)
def test_aliases_that_repeat_aliases_are_refused_in_a_moment(home: Path) -> None:
    write(home, BOMB)
    begun = time.perf_counter()
    assert "more than 200000 values" in refused().what
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a {b: *a}\n", "[" * 5000, "{a: " * 5000, "- " * 5000])
def test_what_contains_itself_or_is_very_deep_is_refused(home: Path, text: str) -> None:
    path = write(home, text)
    assert refused().what.startswith(f"{path}:")


def test_aliases_themselves_are_fine(home: Path) -> None:
    write(home, GOOD.replace("rto: 5m", "rto: &five 5m").replace("rto: 15m", "rto: *five"))
    assert inventory.load("ours").service("orders").rto == 300.0


# ------------------------------------------------------------------------------------------ variables


def with_variables(home: Path, variables: str) -> Path:
    path = write(home, variables, "variables/values")
    write(home, f"variables_from: {path}\n{GOOD.replace('/srv/orders', '${root}/orders')}")
    return path


def test_variables_stand_for_values(home: Path) -> None:
    with_variables(home, "root: /data\nport: 5432\n")
    settings = inventory.load("ours").settings["orders-db"]
    assert str(settings.root) == "/data/orders"  # type: ignore[attr-defined]


def test_the_variables_file_is_found_by_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, "root: /data\n", "elsewhere/values")
    text = GOOD.replace("/srv/orders", "${root}/orders")
    write(home, f"variables_from: ${{SALVOR_TEST_PLACE:-{home}/elsewhere}}/values\n{text}")
    assert str(inventory.load("ours").settings["orders-db"].root) == "/data/orders"  # type: ignore[attr-defined]
    monkeypatch.setenv("SALVOR_TEST_PLACE", "/nowhere")
    error = refused()
    assert error.what == f"{home}/ours.yaml:1:1: the variables file /nowhere/values is not there."
    assert "write that file" in error.hint


def test_an_unknown_variable_is_placed(home: Path) -> None:
    with_variables(home, "port: 5432\n")
    error = refused()
    assert error.what == f"{home}/ours.yaml:6:11: there is no variable 'root'."
    assert error.hint == "the variables are: port"


def test_a_variable_in_a_file_that_names_no_variables_is_placed(home: Path) -> None:
    write(home, GOOD.replace("/srv/orders", "${root}/orders"))
    error = refused()
    assert error.what.startswith(f"{home}/ours.yaml:5:11: the variable 'root' is not defined:")
    assert "add variables_from: FILE" in error.hint


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- root", ":1:1: a variables file is a mapping."),
        ("a: 1\nroot:\n", ":2:1: 'root' needs one plain value."),
        ("root: [a]", ":1:1: 'root' needs one plain value."),
        ("root: {a: b}", ":1:1: 'root' needs one plain value."),
        ("root: !x a", ":1:7: the tag '!x' is not allowed here."),
    ],
)
def test_a_wrong_variables_file_is_placed(home: Path, text: str, what: str) -> None:
    path = with_variables(home, text)
    assert refused().what == f"{path}{what}"


# ------------------------------------------------------------------------------------------ whatever is written


@given(text=some.text(some.sampled_from("ab:-[]{},&*!#'\"?| \n~0.<%@`"), max_size=60))
def test_whatever_is_written_is_read_or_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    try:
        located_yaml.read(path)
    except UsageError as error:
        assert re.match(rf"{re.escape(str(path))}:[1-9]\d*:[1-9]\d*: ", error.what)


def test_values_are_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("a: 22:30\nb: 2026-11-20\nc: 1.5\nd: '007'\ne: ~\nf: true\ng: 10\n")
    assert located_yaml.read(path).data == {
        "a": "22:30",
        "b": "2026-11-20",
        "c": 1.5,
        "d": "007",
        "e": None,
        "f": True,
        "g": 10,
    }


def test_the_platform_that_has_the_service_is_meant(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SALVOR_PLATFORM", raising=False)
    one = write(home, GOOD)
    assert inventory.meant("") == "ours"
    assert inventory.load("ours").path == one, "hints name the file"
    write(home, "services: [", "broken.yaml")
    assert inventory.meant("auth") == "ours"
    with pytest.raises(UsageError, match="--platform is missing, and there are several: broken, ours") as several:
        inventory.meant("")
    assert several.value.hint == "say which: --platform=broken; or export SALVOR_PLATFORM=broken"
    monkeypatch.setenv("SALVOR_INVENTORY", str(Path(__file__).parents[1] / "inventory"))
    assert inventory.names() == ["o4o", "sandbox"] and inventory.meant("") == "sandbox", "as they come: stand-ins alone"
    monkeypatch.setenv("SALVOR_INVENTORY", str(home))
    with pytest.raises(UsageError, match=r"no platform in .* has a service 'nope'") as unknown:
        inventory.meant("nope")
    assert "auth, orders (of ours)" in unknown.value.hint
    assert "those of broken cannot be read: inv assess --platform=broken" in unknown.value.hint
    write(home, GOOD, "theirs.yaml")
    with pytest.raises(UsageError, match="of ours and of theirs") as refused:
        inventory.meant("auth")
    assert "--platform=ours" in refused.value.hint
    monkeypatch.setenv("SALVOR_PLATFORM", "theirs")
    assert inventory.meant("auth") == "theirs"


def test_the_stand_ins_need_no_platform_to_be_named(home: Path) -> None:
    write(home, GOOD)
    write(home, GOOD, "theirs.yaml")
    environment = {**os.environ, "SALVOR_INVENTORY": str(home), "SALVOR_SANDBOX": str(home / "none")}
    environment.pop("SALVOR_PLATFORM", None)
    argv = [str(Path(sys.executable).with_name("inv")), "sandbox.status"]
    done = subprocess.run(
        argv, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Nothing of it stands: inv sandbox.up starts it.\n"), done.stderr
