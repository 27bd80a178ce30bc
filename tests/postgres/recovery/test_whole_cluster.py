"""A physical backup of a cluster that several databases share, while the others work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from salvor.errors import CannotError
from salvor.systems.postgres import Postgres
from salvor.wish import RESTORE_WHOLE_CLUSTER, Wish

from tests.postgres.recovery.clusters import Cluster, now, wait_until_archived

READING = [
    *("archive_command=", "archive_library=", "default_transaction_read_only=on", "autovacuum=off"),
    *("max_logical_replication_workers=0", "synchronous_standby_names="),
]
REASON = "nobody needs what was written to accounts since"


def shared(cluster: Cluster) -> Wish:
    """Another database gets into the cluster; then the orders are lost. To go back to just before that."""
    cluster.write("a", 5)
    with cluster.server("a").session(writes=True) as connection:
        connection.execute("create database accounts")
    moment = now(cluster)
    with cluster.shop("a") as connection:
        connection.execute("delete from orders")
    wait_until_archived(cluster)
    return Wish(at=moment)


def with_context(cluster: Cluster, **context: object) -> Cluster:
    system = cluster.system
    other = Postgres(system.name, system.settings, replace(system.context, **context))  # type: ignore[arg-type]
    return Cluster(cluster.sandbox, other, cluster.acknowledged)


def test_it_is_closed_but_to_a_rehearsal_and_to_who_takes_the_others_back_too(cluster: Cluster) -> None:
    wish = shared(cluster)
    way = cluster.way("physical", wish)
    assert not way.possible
    assert (
        "accounts shares the cluster and works: this way takes it back too, with --override='restore-whole" in way.why
    )
    way = with_context(cluster, is_rehearsal=True).way("physical", wish)
    assert way.possible and "goes back" not in way.why

    whole = with_context(cluster, overridden={RESTORE_WHOLE_CLUSTER: REASON}.get)
    wish = replace(wish, overrides={RESTORE_WHOLE_CLUSTER: REASON})
    way, identity = whole.way("physical", wish), whole.observe().identity
    assert way.possible and way.why.endswith(f"; accounts goes back with it: {REASON}")
    assert "a dump is of one database" in whole.way("logical", wish).why
    assert "/" not in identity, "the cluster is fenced, and not one database in it"
    whole.recover(way, identity)
    assert not whole.missing("a")

    live = cluster.server("a")
    kept = f"{live.data}.kept-{cluster.system.context.incident}"
    control = [live.program("pg_ctl"), "-D", kept, "-w", "-s"]
    settings = " ".join(f"-c {setting}" for setting in READING)
    port = cluster.sandbox.side_port
    live.shell.run([*control, "-l", f"{kept}.log", "-o", f"-p {port} {settings}", "start"])  # as docs/kept.md says
    with replace(live, data=kept, port=port).session("orders") as connection:
        assert connection.execute("select count(*) from orders").fetchone() == (0,), "what was live is kept as it was"
    with pytest.raises(CannotError, match="A server runs in") as raised:
        whole.undo(way.promote_undo)
    assert "-m fast stop; then the same command again" in raised.value.hint
    assert not whole.missing("a"), "nothing was changed"
    live.shell.run([*control, "-m", "fast", "stop"])
    whole.undo(way.promote_undo)
    assert len(whole.missing("a")) == len(cluster.acknowledged)
