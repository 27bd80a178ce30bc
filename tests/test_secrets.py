"""Secrets: references resolved at use, files that nobody else may read, nothing of them in what is written."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from pydantic import BaseModel, ValidationError
from salvor import secrets
from salvor.errors import CannotError, UsageError
from salvor.secrets import MASK, SecretReference, mask, mask_data, resolve


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """No secret of another test, and none for the next one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_known", set())
        patch.setattr(secrets, "_names", set())
        patch.setattr(secrets, "_hidden", None)
        yield


def forget() -> None:
    secrets._known.clear()
    secrets._names.clear()
    secrets._renew()


# ------------------------------------------------------------------------------------------ references


class Settings(BaseModel):
    password: SecretReference


@pytest.mark.parametrize("reference", ["env:ORDERS_PASSWORD", "file:~/secrets/orders", "cmd:pass show 'orders db'"])
def test_a_reference_is_taken(reference: str) -> None:
    assert Settings(password=reference).password == reference


@pytest.mark.parametrize(
    "value", ["hunter2", "", "env:", "env:A B", "env:1A", "file:", "file: ", "file:/a\0", "cmd:", "cmd:'x", "http:x"]
)
def test_what_is_no_reference_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(password=value)
    assert "hunter2" not in refused.value.errors(include_input=False)[0]["msg"]
    with pytest.raises(UsageError, match="must be a reference") as refused_at_use:
        resolve(value)
    assert "hunter2" not in str(refused_at_use.value)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_PASSWORD", "swordfish-9")
    assert resolve("env:ORDERS_PASSWORD") == "swordfish-9"
    assert mask("it is swordfish-9!") == f"it is {MASK}!"


@pytest.mark.parametrize("value", [None, "", "\n"])
def test_an_empty_one_is_an_error_with_the_next_command(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("ORDERS_PASSWORD", raising=False)
    if value is not None:
        monkeypatch.setenv("ORDERS_PASSWORD", value)
    with pytest.raises(CannotError, match="'env:ORDERS_PASSWORD' is empty or not set") as refused:
        resolve("env:ORDERS_PASSWORD")
    assert "same command again" in refused.value.hint


def secret_file(folder: Path, content: bytes = b"swordfish-9\n", mode: int = 0o600) -> Path:
    path = folder / "it's secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_from_a_file(tmp_path: Path) -> None:
    assert resolve(f"file:{secret_file(tmp_path)}") == "swordfish-9"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o601, 0o620])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, mode=mode)
    with pytest.raises(CannotError, match=f"can be read by others .mode {mode:o}") as refused:
        resolve(f"file:{path}")
    assert refused.value.hint == f"chmod 600 {shlex.quote(str(path))}"
    os.system(refused.value.hint)  # noqa: S605 - the hint is what is tried
    assert resolve(f"file:{path}") == "swordfish-9"


@pytest.mark.timeout(20)
def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    binary = secret_file(tmp_path, b"sword\xfffish-9")
    for path, why in (
        (tmp_path / "nowhere", "No such file"),
        (tmp_path, "is no file"),
        (fifo, "is no file"),
        (binary, "not UTF-8"),
    ):
        with pytest.raises(CannotError, match=why) as refused:
            resolve(f"file:{path}")
        assert "fish-9" not in str(refused.value)
        assert "fish-9" not in str(refused.value.__cause__)


def test_from_a_command() -> None:
    assert resolve("cmd:printf 'sword %s\\n' fish-9") == "sword fish-9"
    assert "fish-9" not in mask("sword fish-9")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("sh -c 'echo swordfish-9; exit 3'", "exit code 3"),
        ("/nowhere/at-all", "FileNotFoundError"),
        ("printf '\\377swordfish-9'", "UnicodeDecodeError"),
        ("true", "is empty"),
    ],
)
def test_a_command_that_gives_none_never_shows_what_it_said(command: str, why: str) -> None:
    with pytest.raises(CannotError, match=why) as refused:
        resolve(f"cmd:{command}")
    without_command = str(refused.value).replace(command, "").replace(repr(command), "")
    assert "swordfish-9" not in without_command
    assert refused.value.__cause__ is None


def test_a_command_that_hangs_or_asks_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_DEADLINE", 0.3)
    with pytest.raises(CannotError, match="TimeoutExpired"):
        resolve("cmd:sleep 20")
    with pytest.raises(CannotError, match="is empty"):
        resolve("cmd:cat")  # it finds its input at its end, and not the operator's terminal


# ------------------------------------------------------------------------------------------ nothing survives

SECRETS = some.text(some.characters(exclude_categories=["Cs", "Cc"]), min_size=6, max_size=24).map(str.strip)
TEXTS = some.text(some.characters(exclude_categories=["Cs"]), max_size=40)
QUOTING = some.sampled_from(
    [
        str,
        repr,
        json.dumps,
        quote,
        lambda text: text.replace("'", "''"),
        lambda text: json.dumps(text, ensure_ascii=False),
    ]
)


@given(SECRETS, TEXTS, TEXTS, QUOTING)
def test_no_planted_secret_survives(secret: str, before: str, after: str, quoting: object) -> None:
    assume(len(secret) >= 6 and secret not in before + after and secret not in MASK)
    forget()
    secrets.remember(secret)
    assert callable(quoting)
    text = f"{before}{quoting(secret)}{after}"
    masked = mask(text)
    assert secret not in masked.replace(MASK, "\0")
    assert quote(secret) not in masked.replace(MASK, "\0") or quote(secret) in before + after
    assert mask(masked) == masked


@given(SECRETS, some.recursive(TEXTS, lambda inner: some.lists(inner) | some.dictionaries(TEXTS, inner), max_leaves=6))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_no_planted_secret_survives_in_data(secret: str, data: object) -> None:
    assume(len(secret) >= 6 and secret not in MASK and MASK not in secret)
    forget()
    secrets.remember(secret)
    planted = {
        "inner": data,
        secret: [secret, {f"a{secret}b": f"{secret}{secret}", "n": 7, "none": None}],
        "t": (secret,),
    }

    def texts(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from texts(key)
                yield from texts(item)
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)

    masked = mask_data(planted)
    assert not any(secret in text.replace(MASK, "\0") for text in texts(masked))
    assert isinstance(masked["t"], list)


@pytest.mark.parametrize(
    "written",
    [
        quote("a/b c'\"é\\"),
        quote("a/b c'\"é\\", safe=""),
        quote_plus("a/b c'\"é\\"),
        json.dumps("a/b c'\"é\\"),
        json.dumps("a/b c'\"é\\", ensure_ascii=False),
        repr("a/b c'\"é\\"),
        "'a/b c''\"é\\'",
    ],
)
def test_it_is_hidden_however_it_is_written(written: str) -> None:
    secrets.remember("a/b c'\"é\\")
    assert mask(f"<{written}>").strip("<>'\"") == MASK


def test_a_short_one_is_hidden_where_it_stands_alone() -> None:
    secrets.remember("1234")
    assert mask("PIN 1234, repr '\\n1234\\n', url ://u:1234@h") == f"PIN {MASK}, repr '\\n{MASK}\\n', url ://u:{MASK}@h"
    digest = "a12341234f"
    assert mask(digest) == digest
    secrets.remember("abc")
    assert mask("abc") == "abc"
    secrets.remember("secret")
    assert mask(f"user {MASK}") == f"user {MASK}", "what was masked already"


def test_the_lines_of_a_key_are_hidden_one_by_one() -> None:
    key = (
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAA\nQyNTUxOQAAACD\n-----END OPENSSH PRIVATE KEY-----"
    )
    secrets.remember(key)
    assert "QyNTUx" not in mask("line 3: QyNTUxOQAAACD, is wrong")
    assert "b3Blbn" not in mask(key)
    secrets.remember("servers:\nweb-1\n")
    assert mask("web-1 does not answer") == "web-1 does not answer", "a short line is a word"


def test_of_two_secrets_one_of_which_begins_the_other_nothing_is_left() -> None:
    secrets.remember("swordfish")
    secrets.remember("swordfish-and-chips")
    assert mask("swordfish-and-chips swordfish") == f"{MASK} {MASK}"


def test_names_in_the_open_stay_readable_although_somebody_took_one_as_a_password() -> None:
    secrets.leave_readable(["orders", "orders-db"])
    secrets.remember("orders")
    assert mask("orders-db of orders") == "orders-db of orders"
    secrets.remember("orders-7!")
    assert mask("orders-7!") == MASK


# ------------------------------------------------------------------------------------------ what looks like one

LEAKS = [
    "postgres://app:S3cr3t-x@db.example:5432/orders?sslmode=require",
    "postgres://app:S3cr3t-x@with@signs@db/orders",
    "redis://:S3cr3t-x@cache/0",
    "host=db user=app password=S3cr3t-x dbname=orders",
    "host=db password = 'S3cr3t-x with blanks' dbname=orders",
    "PGPASSWORD=S3cr3t-x psql",
    "repo1-cipher-pass=S3cr3t-x",
    "AWS_SECRET_ACCESS_KEY=S3cr3t-x",
    "X-Api-Key: S3cr3t-x",
    "Authorization: Bearer S3cr3t-x",
    "authorization: Basic S3cr3t-x==",
    "password: S3cr3t-x",
    '{"user": "app", "password": "S3cr3t-x", "port": 5432}',
    json.dumps({"said": '{"token": "S3cr3t-x y"}'}),
    "https://api.example/v1?token=S3cr3t-x&page=2",
    "ALTER ROLE app PASSWORD 'S3cr3t-x''quoted' LOGIN",
    "CREATE USER app IDENTIFIED BY 'S3cr3t-x'",
    "SCRAM-SHA-256$4096:S3cr3t-x==$abc=:def=",
    "-----BEGIN RSA PRIVATE KEY-----\nS3cr3t-x\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nS3cr3t-x cut off here",
]


@pytest.mark.parametrize("text", LEAKS)
def test_what_looks_like_a_secret_is_hidden_and_the_rest_is_kept(text: str) -> None:
    masked = mask(f"before {text}\nafter")
    assert "S3cr3t-x" not in masked
    assert "quoted" not in masked
    assert masked.startswith("before ")
    assert masked.endswith("after") or "cut off" in text
    assert mask(masked) == masked


def test_verifiers_that_the_server_stores_are_hidden() -> None:
    assert mask("rolpassword | md5" + "0a" * 16) == f"rolpassword | {MASK}"


# What engines, tools and people write, the word among it.
SENTENCES = [
    'FATAL:  password authentication failed for user "app"',
    "fe_sendauth: no password supplied",
    "Password for user postgres: ",
    "Enter the password: please wait until it is asked for",
    "HINT: the token is older than a day; the secret was rotated",
    "password_encryption = scram-sha-256",
    "SET password_encryption TO 'scram-sha-256'",
    "syntax error at or near the token SELECT",
    "The secret 'env:ORDERS_PASSWORD' is empty or not set.",
    "The secret file /etc/salvor/orders cannot be read: Permission denied.",
    "operator: {user: salvor, password: env:ORDERS_PASSWORD}",
    'key: {name: salvor, secret: "file:/etc/salvor/tsig.secret"}',
    "/etc/passwd: No such file or directory",
    "http://10.0.0.1:8080/status?mail=a@b.example",
    "inv restore --service=orders --from=s3://backups/orders.sql.gz --at=2026-11-20T03:12+09:00",
    "SCRAM-SHA-256 is asked for",
    "max_tokens is 5 and the tokenizer agrees",
    "pwd: /var/lib/postgresql/15/main",
    "store: stage side-data backup=20261121-003300F",
    "sha256 = 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
]


@pytest.mark.parametrize("text", SENTENCES)
def test_a_sentence_without_a_secret_is_left_as_it_is(text: str) -> None:
    assert mask(text) == text
    assert mask_data({"text": [text]}) == {"text": [text]}


@given(
    some.lists(
        some.sampled_from([word for sentence in SENTENCES for word in sentence.split() if not set(word) & set("='")])
    )
)
def test_words_in_any_order_stay_when_nothing_is_assigned(words: list[str]) -> None:
    text = " ".join(word.rstrip(":") for word in words)
    assume("://" not in text and ":" not in text)
    assert mask(text) == text


def test_what_a_key_calls_a_password_is_one() -> None:
    data = {
        "password": "x",
        "db-token": "y",
        "API_KEY": "z",
        "secret": "env:NAME",
        "token": "",
        "tokens": "five",
        "n": {"passphrase": "p"},
    }
    expected = {
        "password": MASK,
        "db-token": MASK,
        "API_KEY": MASK,
        "secret": "env:NAME",
        "token": "",
        "tokens": "five",
    }
    assert mask_data(data) == {**expected, "n": {"passphrase": MASK}}


def test_a_long_line_is_masked_in_a_moment() -> None:
    from time import process_time

    secrets.remember("swordfish-9")
    begun = process_time()
    assert MASK in mask("x" * 5_000_000 + "swordfish-9")
    assert process_time() - begun < 5


def test_a_child_is_not_handed_a_secret_that_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from salvor import shell

    monkeypatch.setenv("ORDERS_PASSWORD", "swordfish-9")
    monkeypatch.setenv("PGPASSWORD", "another")
    resolve("env:ORDERS_PASSWORD")
    inherited = shell.local().run([sys.executable, "-c", "import os; print(dict(os.environ))"]).stdout
    assert "swordfish-9" not in inherited
    assert "PGPASSWORD" not in inherited
