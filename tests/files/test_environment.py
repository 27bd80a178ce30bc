"""How two files of settings differ, by names alone, whatever lines their values have."""

from __future__ import annotations

import pytest
from salvor.files.environment import compare, read

FILE = r'''# of the shop
EMPTY=
SECRET=one
export  PORT = 8080
URL="postgres://shop:p#1@db/shop"   # the database
PRIVATE_KEY="-----BEGIN PRIVATE KEY-----
MIIEvQIBADANBgkqhkiG9w0BAQEFAASC
Zm9vYmFyYmF6cXV4c2VjcmV0==
-----END PRIVATE KEY-----"
BARE_KEY=-----BEGIN PRIVATE KEY-----
c2VjcmV0c2VjcmV0c2VjcmV0=
-----END PRIVATE KEY-----
OPTIONS=--one \
two=three
JSON='{"a": "it is",
 b=2}'
THREE="""
dGhyZWUgcXVvdGVz=
a "word" in it
"""
NONE=""
QUOTE='tis open
LAST=1
'''


def test_each_value_belongs_to_its_own_name_and_no_line_of_one_is_a_name() -> None:
    found = read(FILE)
    assert [*found] == [
        "EMPTY", "SECRET", "PORT", "URL", "PRIVATE_KEY", "BARE_KEY", "OPTIONS", "JSON", "THREE", "NONE",
        "QUOTE", "LAST",
    ]  # fmt: skip
    assert found["EMPTY"] == ""


def test_a_mark_of_utf_8_and_other_ends_of_lines_change_nothing() -> None:
    text = FILE.removeprefix("# of the shop\n")
    assert compare(FILE, "\ufeff" + text.replace("\n", "\r\n")).detail == "the same settings"


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("SECRET=one", "SECRET=two", "SECRET"),
        ("Zm9vYmFyYmF6cXV4c2VjcmV0==", "Zm9vYmFyYmF6cXV4c2VjcmV1==", "PRIVATE_KEY"),
        ("c2VjcmV0c2VjcmV0c2VjcmV0=", "c2VjcmV0c2VjcmV0c2VjcmV1=", "BARE_KEY"),
        ("two=three", "two=four", "OPTIONS"),
        (" b=2", " b=3", "JSON"),
        ("dGhyZWUgcXVvdGVz=", "dGhyZWUgcXVvdGVy=", "THREE"),
    ],
)
def test_a_change_is_told_by_the_name_that_it_belongs_to(before: str, after: str, name: str) -> None:
    changed = compare(FILE, FILE.replace(before, after))
    assert (changed.added, changed.removed, changed.changed) == ((), (), (name,))


def test_quotes_make_no_other_value() -> None:
    assert compare("A='x'\nB=\"y\"\n", "export A=x\nB = y\n").detail == "the same settings"


def test_a_key_without_a_name_gives_no_name_away() -> None:
    assert read("-----BEGIN KEY-----\nc2VjcmV0=\n-----END KEY-----\nA=1\n") == {"A": "1"}
