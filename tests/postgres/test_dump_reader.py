from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from salvor.errors import CannotError
from salvor.postgres import dump_reader
from salvor.postgres.dump_reader import MetaCommand, Reader, Statement

END = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"


def chunks(text: bytes, size: int) -> Callable[[], bytes]:
    left = [text[at : at + size] for at in range(0, len(text), size)]
    return lambda: left.pop(0) if left else b""


def read(text: bytes, size: int = 1 << 20) -> list[bytes]:
    """The statements of a script and the data of COPY, in order."""
    found: list[bytes] = []
    reader = Reader(chunks(text, size), "x.sql")
    for item in reader:
        found.append(item.text if isinstance(item, MetaCommand) else item.sql)
        if isinstance(item, Statement) and item.reads_data:
            found.append(b"".join(reader.data()))
    return found


def one(text: bytes) -> Statement:
    (item,) = Reader(chunks(text + b";" + END, 1 << 20), "x.sql")
    assert isinstance(item, Statement)
    return item


# Text with everything that could be taken for the end of a statement.
noise = st.text(alphabet="aE;'\"\\$-/*\n\r(), ü名", max_size=12).map(str.encode)
tags = st.sampled_from([b"$$", b"$a$", b"$_b1$", "$名$".encode()])
quoted = st.one_of(
    noise.map(lambda text: b"'" + text.replace(b"'", b"''") + b"'"),
    noise.map(lambda text: b'"' + text.replace(b'"', b'""') + b'"'),
    noise.map(lambda text: b"E'" + text.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"),
    st.tuples(tags, noise).filter(lambda pair: b"$" not in pair[1]).map(lambda pair: pair[0] + pair[1] + pair[0]),
    noise.map(lambda text: b"--" + text.replace(b"\n", b"").replace(b"\r", b"") + b"\n"),
    noise.map(lambda text: b"/*" + text.replace(b"*", b"").replace(b"/", b"") + b"/*;*/*/"),
    noise.map(lambda text: b"(a" + text.translate(None, b"'\"\\$-/*();") + b")"),
    st.sampled_from([b"a$b$c", b"U&'\\0041'", b"B'101'", b"1.5", b"<>", b"'a' \n 'b'", b"begin", b"CASE", b"END"]),
)
statements = st.builds(
    lambda start, parts: start + b" , ".join(parts) + b" y",
    st.sampled_from([b"CREATE x ", b"INSERT INTO s.t (a, b) VALUES ("]),
    st.lists(quoted, min_size=0, max_size=6),
)


@given(st.lists(statements, max_size=5), st.integers(1, 40))
def test_splitting_what_was_joined_gives_the_statements_again(parts: list[bytes], size: int) -> None:
    assert read(b";\n".join([*parts, b""]) + END, size) == parts


@given(
    st.lists(st.binary(max_size=20).map(lambda row: row.replace(b"\n", b"").replace(b"\\", b"\\\\")), max_size=8),
    st.integers(1, 40),
)
def test_data_is_read_whole_whatever_the_chunks(rows: list[bytes], size: int) -> None:
    data = b"".join(row + b"\n" for row in rows)
    text = b"COPY t (a) FROM stdin;\n" + data + b"\\.\n\nSET a = 1;" + END
    assert read(text, size) == [b"COPY t (a) FROM stdin", data, b"SET a = 1"]


def test_blocks_of_data_end_with_a_line_except_in_a_very_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_reader, "_LONG_LINE", 50)
    rows = b"short\n" * 30 + b"x" * 300 + b"\nshort\n"
    reader = Reader(chunks(b"COPY t FROM stdin;\n" + rows + b"\\.\n" + END, 20), "x.sql")
    next(iter(reader))
    blocks = list(reader.data())
    assert b"".join(blocks) == rows
    assert {block.endswith(b"\n") for block in blocks if b"x" not in block} == {True}
    assert max(map(len, blocks)) < 200


def test_data_with_windows_line_ends() -> None:
    text = b"COPY t FROM stdin;\r\n1\r\n2\r\n\\.\r\n" + END.replace(b"\n", b"\r\n")
    assert read(text) == [b"COPY t FROM stdin", b"1\r\n2\r\n"]


def test_data_that_nobody_reads_is_skipped() -> None:
    reader = Reader(chunks(b"COPY t FROM stdin;\n1; DROP\n\\.\nSET a = 1;" + END, 3), "x.sql")
    assert [item.sql for item in reader if isinstance(item, Statement)] == [b"COPY t FROM stdin", b"SET a = 1"]


@pytest.mark.parametrize(
    "body",
    [
        b"BEGIN ATOMIC SELECT 1; SELECT 2; END",
        b"BEGIN ATOMIC SELECT CASE WHEN a THEN ';' ELSE CASE 1 WHEN 2 THEN 3 END END;"
        b"SELECT (CASE 1 WHEN 2 THEN 3 END); END",
    ],
)
def test_a_body_in_sql_is_part_of_its_function(body: bytes) -> None:
    for start in (b"CREATE FUNCTION s.f(begin int) RETURNS int LANGUAGE sql ", b"create or replace procedure p() "):
        assert read(start + body + b";\nSET a = 1;" + END) == [start + body, b"SET a = 1"]
    # elsewhere these are names
    assert read(b"CREATE TABLE t (x begin) BEGIN ATOMIC; SET a = 1;" + END)[1] == b"SET a = 1"


def test_backslashes_in_strings_follow_the_setting() -> None:
    on, off = b"SET standard_conforming_strings = on", b"SET standard_conforming_strings = off"
    assert read(on + b";SET a = '\\'; SET b = ';';" + END) == [on, b"SET a = '\\'", b"SET b = ';'"]
    assert read(off + b";SET a = '\\'; SET b = ' ;" + END) == [off, b"SET a = '\\'; SET b = ' "]


def test_a_semicolon_within_parentheses_ends_no_rule() -> None:
    rule = b"CREATE RULE r AS ON DELETE TO t DO INSTEAD (UPDATE t SET a = 1; DELETE FROM t;)"
    assert read(rule + b";" + END) == [rule]


def test_the_shape_has_no_text_of_quotes() -> None:
    shape = one(b"Create /* FROM */ table \"from\".x$1 ('drop''', $$;$$, E'\\'', 12.5) -- x\n").shape
    assert shape == "CREATE TABLE \"\" . X$1 ( '' , '' , '' , 0 )"


def test_lines_are_counted() -> None:
    text = b"-- a\nSET a = 1;\nCOPY t FROM stdin;\n1\n2\n\\.\n\n\nSET b\n= 2;\\unrestrict x\n" + END
    for size in (1, 7, 1000):
        assert [item.line for item in Reader(chunks(text, size), "x.sql")] == [2, 3, 9, 10]


def test_many_rows_in_one_insert_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_reader, "MOST_TOKENS", 50)
    statement = one(b"INSERT INTO t VALUES " + b"(1, 'a'), " * 100 + b"(1, 'a')")
    assert len(statement.tokens) == dump_reader.FEW_TOKENS
    with pytest.raises(CannotError, match="more than 50 words"):
        one(b"CREATE TABLE t (" + b"(" * 100)


def test_a_statement_that_never_ends_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_reader, "LARGEST_STATEMENT", 1 << 20)
    served = 0

    def bomb() -> bytes:
        nonlocal served
        served += 1 << 16
        return b"0" * (1 << 16)

    with pytest.raises(CannotError, match="more than 1 MB"):
        list(Reader(bomb, "x.sql"))
    assert served <= 4 << 20


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "without '-- PostgreSQL database dump complete'"),
        (b"SET a = 1;\n", "without"),
        (END + b"SET a = 1;\n", "without"),
        (b"SET a = 1", "line 1: it ends within a statement"),
        (b"\nSET a = 'x;\n" + END, "line 2: it ends within a statement"),
        (b'SET "x;' + END, "within a statement"),
        (b"SET $a$;$$" + END, "within a statement"),
        (b"SET /* ;/* */" + END, "within a statement"),
        (b"/* " + END, "within a statement"),
        (b"CREATE FUNCTION f() BEGIN ATOMIC SELECT 1;" + END, "within a statement"),
        (b"COPY t FROM stdin;", "within the data"),
        (b"COPY t FROM stdin;\n1\n2", "within the data"),
        (b"COPY t FROM stdin;\n1\n\\.", "within the data"),
        (b"COPY t FROM stdin;\n1\n\\.x\n" + END, "line 3: the data of COPY ends with something else"),
        (b"COPY t FROM stdin; SELECT 1;\n1\n\\.\n" + END, "follows COPY"),
        (b"SET a\n= \\! touch x\n;" + END, "line 2: a backslash outside of quotes"),
        (b"SET a = 1\0;" + END, "zero byte"),
        (b"SELECT E'a'\n'\\';';" + END, "goes on in another line"),
        (b"SELECT E'a' -- x\r'\\';';" + END, "goes on in another line"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_cannot_be_read_is_told_with_its_line(text: bytes, what: str, size: int) -> None:
    with pytest.raises(CannotError, match=what):
        read(text, size)


def test_meta_commands_are_handed_on_and_never_taken_for_sql() -> None:
    assert read(b"\\restrict abc\r\nSET a = 1; \\! rm -rf x ; y\n" + END) == [
        b"\\restrict abc",
        b"SET a = 1",
        b"\\! rm -rf x ; y",
    ]
