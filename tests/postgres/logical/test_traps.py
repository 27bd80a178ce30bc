"""What a dump can leave lying about for whoever touches it, and that Salvor never springs it with rights of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from salvor.change import Level
from salvor.errors import OutcomeUnknownError
from salvor.postgres import dumps, loading
from salvor.wish import Wish

from tests.postgres.logical.world import World

TRAPS = Path(__file__).with_name("traps.sql").read_text()
CHECK = "select sum(id) from orders"
"""A service's check of a view that calls a trap for each of its two rows."""


@pytest.fixture
def trapped(made: World, tmp_path: Path) -> Wish:
    """A dump full of traps, as a file of unknown origin."""
    dump = tmp_path / "traps.sql"
    dump.write_text(TRAPS.replace("{mark}", str(made.home / "mark")))
    return Wish(source=str(dump))


def sprung(world: World) -> set[str]:
    """The roles that ran into a trap by now, by the logs of all servers."""
    texts = [path.read_text(errors="replace") for path in world.home.rglob("*.log")]
    return set(re.findall(r'TRAP sprung as "(.*)"', "".join(texts)))


def powers(world: World) -> list[Any]:
    """Every role with its rights, settings and password, but those that Salvor made for this."""
    with world.server.connect() as connection:
        return connection.execute(
            "select to_jsonb(a) - 'oid' from pg_catalog.pg_authid a where rolname !~ '^(pg|salvor)_' order by rolname"
        ).fetchall()


@pytest.mark.parametrize(("world", "owner"), [("shared", "shop"), ("alone", "salvor")])
def test_a_dump_of_unknown_origin_springs_its_traps_without_power_until_it_is_live_and_after(
    world: str, owner: str, made: World, trapped: Wish, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The planner computes constant predicates and checks as the one who asks, a view runs as the one who reads it, and
    ANALYZE computes an index's expressions as the table's owner: the loading role, one that the dump names, or the
    database's owner, who may be a superuser. See docs/decisions, untrusted dumps.
    """
    one: World = request.getfixturevalue(world)
    with one.server.connect(writes=True) as connection:
        connection.execute(f"alter database orders owner to {owner}".encode())
    before, powers_before = one.describe(), powers(one)
    for log in one.home.rglob("*.log"):
        log.write_text("")
    way, state = one.way(trapped), one.system.observe()
    one.do("fence", identity=state.identity)

    one.do("stage", **(way.arguments or {}))
    loader = loading.role_of(one.system.context.incident)
    assert sprung(one) == {loader}
    levels = one.levels(way, trapped)
    assert Level.FAIL not in levels.values(), levels
    assert one.system.ask(CHECK, way.stage) == 2
    one.do("promote", **way.promote)
    assert [one.system.ask(CHECK, where) for where in ("live", "address:127.0.0.1")] == [2, 2]
    list(dumps.take(one.server, "orders", str(tmp_path / "dumps")))
    (reader,) = sprung(one) - {loader}
    assert reader.startswith("salvor_reads_")
    assert not (one.home / "mark").exists()
    with one.server.connect(writes=True) as connection:  # as when the operator's is changed, from which it follows
        connection.execute(f"alter role {reader} password 'another'".encode())
    with pytest.raises(OutcomeUnknownError, match="says nothing of the data"):
        one.system.ask(CHECK, "live")
    if world == "shared":
        assert powers(one) == powers_before
    one.undo(way.promote_undo)
    one.do("drop", stage=way.stage)

    if world == "shared":  # a backup of such a database is trusted, and its origin is as little known as before
        (backup,) = (tmp_path / "dumps").iterdir()
        again = one.way(Wish(source=str(backup)))
        one.do("stage", **(again.arguments or {}))
        assert one.levels(again)["content fingerprint"] is Level.PASS
        assert one.system.ask(CHECK, way.stage) == 2
        assert [name[:13] for name in sprung(one) - {loader, reader}] == ["salvor_reads_"]
        assert not (one.home / "mark").exists()
        one.do("drop", stage=way.stage)
    one.do("unfence", identity=state.identity)
    assert powers(one) == powers_before
    assert one.describe() == before
    with one.server.connect(writes=True) as connection:
        connection.execute("alter database orders owner to shop")
    assert one.count() == 500
