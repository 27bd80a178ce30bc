"""Reads the script of a plain dump: its SQL statements one by one, and the data of COPY in blocks of whole lines.

The rules of where a token ends are the server's own (src/backend/parser/scan.l), those of where a statement ends are
psql's (src/fe_utils/psqlscan.l). psql itself is never used: its meta-commands can run programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from salvor.errors import CannotError

LARGEST_STATEMENT = 256 << 20
"""Bytes: an INSERT may hold a large value, yet a statement that never ends must not fill the memory."""
MOST_TOKENS = 1_000_000
FEW_TOKENS = 8
"""As many of an INSERT are kept: its rows are not looked at."""

_READ_AT_MOST = 16 << 20
_LONG_LINE = 1 << 20

_COMPLETE = b"-- PostgreSQL database dump complete"
_END_OF_DATA = re.compile(rb"\n\\\.")


def _tokens(string: bytes, first: bytes = b"") -> re.Pattern[bytes]:
    # possessive quantifiers: a quote that is not closed costs one pass, not a backtracking;
    # negative lookaheads: the start of a token whose end was not read yet is not taken for another token
    return re.compile(
        first
        + rb"""(?P<space>[ \t\n\r\f\v]++)
        |(?P<comment>--[^\n\r]*+)
        |(?P<block>/\*)
        |(?P<escaped>[eE]'[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+')
        |(?P<string>"""
        + string
        + rb""")
        |(?P<name>"[^"]*+(?:""[^"]*+)*+")
        |(?P<dollar>\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?\$)
        |(?P<word>(?![eE]')[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+)
        |(?P<number>[0-9]++(?:\.[0-9]*+)?+)
        |(?P<other>(?!\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?+\Z)[^\\'"\x00A-Za-z0-9_\x80-\xff])""",
        re.VERBOSE | re.DOTALL,
    )


_STRING = rb"'[^']*+(?:''[^']*+)*+'"
_STANDARD = _tokens(_STRING)
_ROWS = _tokens(
    _STRING,
    rb"""(?P<rows>(?:[^'"$;\\\x00/\-A-Za-z_\x80-\xff]++|(?![eE]')[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*+
        |-(?!-)|/(?!\*)|"""
    + _STRING
    + rb""")++)|""",
)
"""Takes all that cannot end an INSERT at once: its rows are many, and nobody looks at them."""
_BACKSLASHES = _tokens(rb"'[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+'")
"""For `standard_conforming_strings = off`."""
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_ROUTINE = re.compile(r"CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE) ")
_COPY = re.compile(r"COPY .* FROM STDIN\b")


class Token(NamedTuple):
    """One token of a statement, comments left out: `kind` is word, name (quoted), string, number or other."""

    kind: str
    text: bytes
    start: int  # in the statement

    @property
    def shape(self) -> str:
        """What the token is, without what it says: a keyword in capitals, `""` for a quoted name, `''` for a string."""
        if self.kind == "word":
            return self.text.upper().decode("latin-1")
        if self.kind == "other":
            return self.text.decode("latin-1")
        return {"name": '""', "string": "''", "number": "0"}[self.kind]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement without its semicolon. `line` is where it starts in the script, from 1."""

    sql: bytes
    line: int
    tokens: tuple[Token, ...]
    shape: str
    """The shapes of its tokens with a space between: what rules are matched against."""

    @property
    def reads_data(self) -> bool:
        """Whether the lines after it are data of COPY."""
        return bool(_COPY.match(self.shape))


@dataclass(frozen=True, slots=True)
class MetaCommand:
    """A line that starts with a backslash, which psql would obey."""

    text: bytes
    line: int


class Reader:
    """Reads a script from `chunk`, which gives its next bytes, none at the end. Its errors are CannotError."""

    def __init__(self, chunk: Callable[[], bytes], source: str) -> None:
        self._chunk = chunk
        self._source = source
        self._buffer = b""
        self._at = 0
        self._counted = 0  # the line is counted up to here
        self._line = 1
        self._ended = False
        self._complete = False
        self._in_data = False
        self._pattern = _STANDARD

    @property
    def line(self) -> int:
        """The line that is read now, from 1."""
        self._line += self._buffer.count(b"\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def error(self, what: str, line: int | None = None, hint: str = "") -> CannotError:
        """An error that says where in the dump it is."""
        return CannotError(f"{self._source}, line {self.line if line is None else line}: {what}", hint=hint)

    def _truncated(self, where: str, line: int | None = None) -> CannotError:
        return self.error(f"it ends {where}: it is truncated.", line, "take another copy of it, or an older backup")

    def __iter__(self) -> Iterator[Statement | MetaCommand]:
        """Each statement in order. The data that belongs to one is `data()`; what is not read of it is skipped."""
        while not self._at_end():
            if self._buffer.startswith(b"\\", self._at):
                yield self._meta_command()
                continue
            self._complete = False
            statement = self._statement()
            if "STANDARD_CONFORMING_STRINGS" in statement.shape[:40]:
                self._pattern = _BACKSLASHES if statement.shape.endswith(" OFF") else _STANDARD
            self._in_data = statement.reads_data
            yield statement
            for _ in self.data():
                pass
        if not self._complete:
            raise self._truncated("without '-- PostgreSQL database dump complete'")

    # ---------------------------------------------------------------------------------------------- statements

    def _more(self, start: int) -> int:
        """Read on, keeping the buffer from `start`: the more, the longer what is kept. Return the bytes read."""
        self.line  # noqa: B018  # count before the start is dropped
        kept = len(self._buffer) - start
        if kept > LARGEST_STATEMENT:
            raise self.error(f"a statement of more than {LARGEST_STATEMENT >> 20} MB: it cannot be one of pg_dump's.")
        pieces, size = [self._buffer[start:]], 0
        while size <= min(kept, _READ_AT_MOST):
            chunk = self._chunk()
            if not chunk:
                self._ended = True
                break
            pieces.append(chunk)
            size += len(chunk)
        self._buffer = b"".join(pieces)
        self._at -= start
        self._counted -= start
        return size

    def _token(self, start: int, pattern: re.Pattern[bytes] | None = None) -> tuple[int, re.Match[bytes] | None, int]:
        """The next token: where the statement starts now (reading on moves it), the match, where the token ends."""
        while True:
            match = (pattern or self._pattern).match(self._buffer, self._at)
            end = match.end() if match else -1
            if match and match.lastgroup in {"dollar", "block"}:
                end = self._end_of_dollar(match) if match.lastgroup == "dollar" else self._end_of_comment(end)
            # a token that touches the end of what was read may go on in what was not
            if (match and 0 <= end < len(self._buffer)) or (end == len(self._buffer) and self._ended):
                return start, match, end
            if self._ended or (match is None and self._buffer[self._at : self._at + 1] in {b"\\", b"\0"}):
                return start, None, self._at
            self._more(start)
            start = 0

    def _end_of_dollar(self, opening: re.Match[bytes]) -> int:
        found = self._buffer.find(opening[0], opening.end())
        return -1 if found < 0 else found + len(opening[0])

    def _end_of_comment(self, at: int) -> int:
        depth = 1  # comments nest
        while depth:
            edge = _COMMENT_EDGE.search(self._buffer, at)
            if not edge:
                return -1
            depth += 1 if edge[0] == b"/*" else -1
            at = edge.end()
        return at

    def _at_end(self) -> bool:
        """Skip what is between statements. True at the end of the dump."""
        while True:
            if self._at >= len(self._buffer) and (self._ended or not self._more(self._at)):
                return True
            _, match, end = self._token(self._at)
            kind = match.lastgroup if match else None
            if kind == "comment":
                assert match
                self._complete = self._complete or match[0] == _COMPLETE
            if kind not in {"space", "comment", "block"} and not (match and match[0] == b";"):
                return False
            self._at = end

    def _meta_command(self) -> MetaCommand:
        while (end := self._buffer.find(b"\n", self._at)) < 0 and not self._ended:
            self._more(self._at)
        end = end if end >= 0 else len(self._buffer)
        command = MetaCommand(self._buffer[self._at : end].rstrip(b"\r"), self.line)
        self._at = end
        return command

    def _statement(self) -> Statement:
        line, start = self.line, self._at
        tokens: list[Token] = []
        shapes: list[str] = []
        parentheses = blocks = count = 0
        routine, previous, pattern = False, "", self._pattern
        while True:
            start, match, end = self._token(start, pattern)
            if match is None:
                raise self._unreadable(line)
            kind = match.lastgroup
            assert kind
            text = self._buffer[self._at : end]
            if text == b";" and ((not parentheses and not blocks) or shapes[:1] == ["INSERT"]):
                break
            if kind not in {"space", "comment", "block", "rows"}:
                if kind == "string" and previous == "escaped":
                    # the server reads the second part with escapes too
                    raise self.error("a string with escapes that goes on in another line: pg_dump writes none.")
                previous = kind
                count += 1
                if count > MOST_TOKENS and shapes[0] != "INSERT":
                    raise self.error(f"a statement of more than {MOST_TOKENS} words, from line {line} on.")
                token = Token("string" if kind in {"escaped", "dollar"} else kind, text, self._at - start)
                shape = token.shape
                if count <= FEW_TOKENS or shapes[0] != "INSERT":
                    tokens.append(token)
                    shapes.append(shape)
                if count == FEW_TOKENS and shapes[0] == "INSERT" and pattern is _STANDARD:
                    pattern = _ROWS
                if count == 4:
                    routine = bool(_ROUTINE.match(" ".join(shapes) + " "))
                if shape == "(":
                    parentheses += 1
                elif shape == ")":
                    parentheses = max(0, parentheses - 1)
                elif routine and not parentheses:
                    blocks = _blocks(blocks, shapes)
            self._at = end
        sql = self._buffer[start : self._at]
        self._at = end
        return Statement(sql, line, tuple(tokens), " ".join(shapes))

    def _unreadable(self, line: int) -> CannotError:
        character = self._buffer[self._at : self._at + 1]
        if character == b"\\":
            return self.error("a backslash outside of quotes: commands of psql are not obeyed here.")
        if character == b"\0":
            return self.error("a zero byte: this is not text.")
        return self._truncated("within a statement", line)

    # ---------------------------------------------------------------------------------------------------- data

    def data(self) -> Iterator[bytes]:
        """The data of the COPY statement that was read last, in blocks that end with a line (a very long line is cut).

        The end marker is left out. Raises CannotError when the data is cut off or its end is malformed.
        """
        if not self._in_data:
            return
        self._in_data = False
        while (newline := self._buffer.find(b"\n", self._at)) < 0:
            if self._ended:
                raise self._truncated("within the data of COPY")
            self._more(self._at)
        if self._buffer[self._at : newline].strip():
            raise self.error("something follows COPY ... FROM stdin on its line.")
        at_line_start = True
        self._at = newline + 1
        while True:
            end = self._end_of_data(at_line_start)
            if end is not None:
                if end > self._at:
                    yield self._buffer[self._at : end]
                self._at = end
                self._skip_end_marker()
                return
            cut = self._buffer.rfind(b"\n", self._at) + 1
            if not cut and len(self._buffer) - self._at > _LONG_LINE:
                cut = len(self._buffer)
            if cut:
                block = self._buffer[self._at : cut]
                self._at = cut
                at_line_start = block.endswith(b"\n")
                yield block
            if self._ended:
                raise self._truncated("within the data of COPY")
            self._more(self._at)

    def _end_of_data(self, at_line_start: bool) -> int | None:
        if at_line_start and self._buffer.startswith(b"\\.", self._at):
            return self._at
        found = _END_OF_DATA.search(self._buffer, self._at)
        return found.start() + 1 if found else None

    def _skip_end_marker(self) -> None:
        while (end := self._buffer.find(b"\n", self._at)) < 0 and not self._ended:
            self._more(self._at)
        if end < 0:
            raise self._truncated("within the data of COPY")
        if self._buffer[self._at : end].rstrip(b"\r") != b"\\.":
            raise self.error("the data of COPY ends with something else than '\\.'.")
        self._at = end + 1


def _blocks(blocks: int, shapes: list[str]) -> int:
    """How many `BEGIN ATOMIC` and `CASE` are open in a function's body after the last of `shapes`."""
    if shapes[-1] == "ATOMIC" and shapes[-2:-1] == ["BEGIN"]:
        return blocks + 1
    if blocks and shapes[-1] == "CASE":
        return blocks + 1
    if blocks and shapes[-1] == "END":
        return blocks - 1
    return blocks
