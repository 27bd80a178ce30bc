"""What a dump can leave lying about for whoever touches it, and that Salvor never springs it with rights of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from salvor.postgres import loading
from salvor.wish import Wish

from tests.postgres.logical.world import World

TRAPS = Path(__file__).with_name("traps.sql").read_text()


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


@pytest.mark.parametrize("world", ["shared", "alone"])
def test_loading_springs_traps_only_by_roles_that_own_them(
    world: str, made: World, trapped: Wish, request: pytest.FixtureRequest
) -> None:
    """ANALYZE computes an index's expressions as the table's owner, whom the dump names. (Whoever queries the tables
    later springs them as well: the planner computes a constant predicate. See docs/decisions, untrusted dumps.)
    """
    one: World = request.getfixturevalue(world)
    before = one.describe()
    earlier = sprung(one)
    way = one.way(trapped)
    one.do("stage", **(way.arguments or {}))
    loader = loading.role_of(one.system.context.incident)
    assert loader in sprung(one)
    assert sprung(one) - earlier <= {loader, "auditor"}
    assert not (one.home / "mark").exists()
    one.do("drop", stage=way.stage)
    assert one.describe() == before
    assert one.count() == 500
