"""What an operator types: read, or refused by the argument's name with what is wrong and the mend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some
from salvor import clock
from salvor.arguments import OVERRIDES, required, wish
from salvor.errors import UsageError
from salvor.wish import Wish

NOW = datetime(2026, 11, 20, 3, 30, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="module")
def at_half_past_three() -> Iterator[None]:
    with clock.use(lambda: NOW):
        yield


def test_nothing_typed_is_the_latest() -> None:
    assert wish() == (Wish(), None)


def test_all_that_can_be_typed() -> None:
    wished, failed_at = wish(
        source="s3://backups/orders.sql.gz",
        at="2026-11-20T12:12+09:00",
        failed_at="2026-11-20T03:00Z",
        override="promote-without-fence=the host burnt down, said Kim",
    )
    assert wished == Wish(
        source="s3://backups/orders.sql.gz",
        at=datetime(2026, 11, 20, 3, 12, tzinfo=UTC),
        overrides={"promote-without-fence": "the host burnt down, said Kim"},
    )
    assert failed_at == datetime(2026, 11, 20, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize("target", ["lsn:0/3000060", "lsn:FFFFFFFF/ffffffff", "name:before release 7", "name:it's; --"])
def test_targets(target: str) -> None:
    assert wish(target=target)[0].target == target


@pytest.mark.parametrize("name", ["incident", "episode", "service", "limit"])
def test_what_is_missing_is_said_with_where_it_is_listed(name: str) -> None:
    with pytest.raises(UsageError, match=f"^--{name} is missing") as missing:
        required(name, "")
    assert re.match(rf"add --{name}=(ID|NAME); inv [a-z.]+ ", missing.value.hint)


@pytest.mark.parametrize(
    ("typed", "what", "mend"),
    [
        ({"at": "yesterday"}, "--at: 'yesterday' is not a time", "ISO 8601 with an offset"),
        ({"at": "2026-11-20T03:12"}, "--at: '2026-11-20T03:12' has no offset", "--at=2026-11-20T03:12:00+00:00"),
        ({"at": "2026-11-20T03:31Z"}, "--at: 2026-11-20T03:31:00.000000+00:00 is in the future", "now"),
        ({"failed_at": "2026-11-21T00:00Z"}, "--failed-at: ", "it is 2026-11-20T03:30:00.000000+00:00 now"),
        ({"failed_at": "x"}, "--failed-at: 'x' is not a time", "--failed-at=2026-11-20T03:30:00+00:00"),
        ({"at": "2026-11-20T03:12Z", "target": "name:x"}, "--at and --target both", "give one of the two"),
        ({"target": "before"}, "--target: 'before' is neither", "--target=name:before-release"),
        ({"target": "lsn:0/123456789"}, "--target: ", "lsn:0/3000060"),
        ({"target": "name:"}, "--target: ", "name:"),
        ({"target": "name:a\nb"}, "--target: ", "name:"),
        ({"target": "lsn:0/1; drop"}, "--target: ", "lsn:"),
        ({"source": "a\nb"}, "--from: 'a\\nb' holds a control character", "a path, a URI"),
        ({"source": "\x1b[2J"}, "--from: '\\x1b[2J' holds", "a backup id"),
        ({"source": "-oProxyCommand=x"}, "--from: '-oProxyCommand=x' begins with a hyphen", "./NAME"),
        ({"source": " "}, "--from: ' ' begins", "latest"),
        ({"override": "fence-machine=it is hostile"}, "--override: there is no 'fence-machine'", "fence-machine:NAME"),
        ({"override": "trust-me"}, "--override: there is no 'trust-me'", "promote-without-fence: promote a standby"),
        (
            {"override": "promote-without-fence"},
            "--override: promote-without-fence needs the reason",
            "the host burnt down",
        ),
        ({"override": "promote-without-fence= ok   "}, "needs the reason", "confirmed by NAME"),
    ],
)
def test_what_makes_no_sense_is_refused(typed: dict[str, str], what: str, mend: str) -> None:
    with pytest.raises(UsageError) as refused:
        wish(**typed)
    assert what in refused.value.what
    assert mend in refused.value.hint
    assert refused.value.exit_code == 2


@given(*[some.text(max_size=20)] * 5, some.sampled_from(["", *OVERRIDES]))
def test_whatever_is_typed_is_taken_or_refused(
    source: str, at: str, target: str, failed_at: str, reason: str, override: str
) -> None:
    try:
        wish(source, at, target, failed_at, f"{override}={reason}")
    except UsageError as refused:
        assert refused.what.startswith("--")
        assert refused.hint
