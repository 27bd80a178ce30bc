"""kill -9 of the operator's process before each of its commands in turn, then the same call again: the same end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salvor.postgres.physical import STAGE
from salvor.system import Wish

from tests.postgres.recovery import dying
from tests.postgres.recovery.clusters import Cluster, is_up

WISH = Wish(rpo=30.0)


def until_it_ends(cluster: Cluster, verb: str, arguments: Mapping[str, Any], step: int = 1) -> int:
    """Call it killed ever later, so that each call finds what the one before left, until one comes to its end."""
    for dies_before in range(1, 400, step):
        if dying.call(cluster, verb, arguments, dies_before=dies_before):
            return dies_before
    raise AssertionError(f"{verb} does not come to its end")


def test_stage_promote_and_demote_killed_before_each_command(cluster: Cluster) -> None:
    cluster.write("a", 50)
    cluster.crash("a")
    identity = cluster.observe().identity
    way = cluster.way("physical", WISH)
    assert way.arguments and way.promote_undo
    assert until_it_ends(cluster, "fence", {"identity": identity}) > 3
    assert cluster.observe().writable is False
    assert until_it_ends(cluster, "stage", way.arguments, 2) > 10
    staged = [one for one in cluster.observe().staged if one.name == STAGE]
    assert [one.complete for one in staged] == [True]
    assert until_it_ends(cluster, "promote", way.promote) > 15
    state = cluster.observe()
    assert is_up(state) and state.identity == staged[0].identity and state.origin == cluster.system.context.incident
    assert [one.identity for one in state.kept] == [identity]
    assert cluster.missing("a") == set()
    cluster.write("a", 1)

    assert until_it_ends(cluster, "demote", way.promote_undo.arguments) > 5
    state = cluster.observe()
    assert (state.identity, state.writable, state.kept) == (identity, False, ())
    assert cluster.server("a").processes() == [], "it did not run before"
    assert until_it_ends(cluster, "drop", {"stage": STAGE}) > 3
    assert until_it_ends(cluster, "unfence", {"identity": identity}) > 3
    cluster.server("a").start()
    assert is_up(cluster.observe())


def test_failover_and_rebuild_killed_before_each_command(cluster: Cluster) -> None:
    cluster.write("a", 20)
    identity = cluster.observe().identity
    way = cluster.way("failover", WISH)
    assert until_it_ends(cluster, "fence", {"identity": identity}) > 5
    assert until_it_ends(cluster, "promote", way.promote, 2) > 5
    state = cluster.observe()
    assert is_up(state) and state.identity == way.identity
    assert cluster.missing("b") == set()
    assert until_it_ends(cluster, "rebuild_standby", {"member": "a"}, 2) > 5
    state = cluster.observe()
    assert [one.identity for one in state.kept] == [identity]
    assert [one.name for one in state.staged] == ["standby a"]
    assert list(cluster.system.redundancy()) == []
