"""kill -9 of the operator's process before each of its commands in turn, then the same call again: the same end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from salvor.postgres.physical import STAGE
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up
from tests.postgres.recovery.dying import Mortals

WISH = Wish(rpo=30.0)


@pytest.fixture
def mortals(cluster: Cluster) -> Iterator[Mortals]:
    found = Mortals(cluster)
    yield found
    found.close()


def test_stage_promote_and_demote_killed_before_each_command(cluster: Cluster, mortals: Mortals) -> None:
    cluster.write("a", 50)
    cluster.crash("a")
    identity = cluster.observe().identity
    way = cluster.way("physical", WISH)
    assert way.arguments and way.promote_undo
    assert mortals.until_it_ends("fence", {"identity": identity}) > 3
    assert cluster.observe().writable is False
    assert mortals.until_it_ends("stage", way.arguments, 2) > 10
    staged = [one for one in cluster.observe().staged if one.name == STAGE]
    assert [one.complete for one in staged] == [True]
    assert mortals.until_it_ends("promote", way.promote) > 10
    state = cluster.observe()
    assert is_up(state) and state.identity == staged[0].identity and state.origin == cluster.system.context.incident
    assert [one.identity for one in state.kept] == [identity]
    assert cluster.missing("a") == set()
    cluster.write("a", 1)

    assert mortals.until_it_ends("demote", way.promote_undo.arguments, 2) > 5
    state = cluster.observe()
    assert (state.identity, state.writable, state.kept) == (identity, False, ())
    assert cluster.server("a").processes() == [], "it did not run before"
    assert mortals.until_it_ends("drop", {"stage": STAGE}, 3) > 3
    assert mortals.until_it_ends("unfence", {"identity": identity}, 3) > 3
    cluster.server("a").start()
    assert is_up(cluster.observe())


def test_failover_and_rebuild_killed_before_each_command(cluster: Cluster, mortals: Mortals) -> None:
    cluster.write("a", 20)
    identity = cluster.observe().identity
    way = cluster.way("failover", WISH)
    assert mortals.until_it_ends("fence", {"identity": identity}, 2) > 5
    assert mortals.until_it_ends("promote", way.promote, 2) > 5
    state = cluster.observe()
    assert is_up(state) and state.identity == way.identity
    assert cluster.missing("b") == set()
    assert mortals.until_it_ends("rebuild_standby", {"member": "a"}, 2) > 5
    state = cluster.observe()
    assert [one.identity for one in state.kept] == [identity]
    assert [one.name for one in state.staged] == ["standby a"]
    assert list(cluster.system.redundancy()) == []
