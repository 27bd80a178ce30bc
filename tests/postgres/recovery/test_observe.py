from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from salvor import clock
from salvor.change import ABSENT, Change, Reachable, State, WayBack
from salvor.errors import CannotError
from salvor.postgres import backrest, fence, lag
from salvor.postgres.described import mistake_in
from salvor.postgres.facts import Facts
from salvor.postgres.lag import lag_of
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up, wait_until_replayed, without_programs
from tests.waiting import until


def observe_in_time(system: Postgres) -> State:
    """It takes 4 s when a machine is silent, 11 s when one wait follows the other; the rest is for a busy machine."""
    begun = time.monotonic()
    state = system.observe()
    assert time.monotonic() - begun < 8.0
    return state


def test_a_healthy_cluster(cluster: Cluster) -> None:
    cluster.write("a", 3)
    wait_until_replayed(cluster)
    state = observe_in_time(cluster.system)
    assert is_up(state) and state.origin is None and state.address == "127.0.0.11"
    assert state.identity == cluster.server("a").identity()
    assert [(one.name, one.complete, one.address) for one in state.staged] == [("standby b", True, "127.0.0.12")]
    assert state.fresh and state.staged[0].fresh


def test_everything_broken_at_once(cluster: Cluster) -> None:
    cluster.signal_all("a", signal.SIGSTOP)
    cluster.signal_all("b", signal.SIGSTOP)
    state = observe_in_time(cluster.system)
    assert (state.reachable, state.writable) == (Reachable.UNKNOWN, None)
    assert state.summary.count("frozen by a signal (it runs and does not answer: given up)") == 2, "nobody waited"
    cluster.crash("a")
    cluster.crash("b")
    state = observe_in_time(cluster.system)
    assert (state.reachable, state.staged) == (Reachable.DOWN, ())
    cluster.sandbox.shell.run(["rm", "-rf", cluster.server("a").data, cluster.server("b").data])
    state = observe_in_time(cluster.system)
    assert (state.identity, state.reachable) == (ABSENT, Reachable.DOWN)


def test_a_server_that_was_frozen_for_a_moment_is_up(cluster: Cluster) -> None:
    cluster.signal_all("a", signal.SIGSTOP)
    threading.Timer(0.3, cluster.signal_all, ("a", signal.SIGCONT)).start()
    assert is_up(observe_in_time(cluster.system))


def test_a_program_that_prints_a_setting_is_no_server(cluster: Cluster, tmp_path: Path) -> None:
    """Every look of somebody else runs `postgres -D DATA -C NAME` for an instant: a dead server must not look alive."""
    server = cluster.server("a")
    cluster.crash("a")
    pretender = tmp_path / "postgres"
    pretender.write_text("#!/bin/sh\nsleep 60\n")
    pretender.chmod(0o755)
    for arguments, found in ((["-C", "hba_file"], 0), ([], 1)):
        with subprocess.Popen([pretender, "-D", server.data, *arguments], start_new_session=True) as process:
            time.sleep(0.2)
            assert len(server.processes()) == found
            os.killpg(process.pid, signal.SIGKILL)


def test_a_damaged_control_file(cluster: Cluster) -> None:
    cluster.crash("a")
    cluster.sandbox.shell.run(["rm", f"{cluster.server('a').data}/global/pg_control"])
    state = observe_in_time(cluster.system)
    assert state.reachable is Reachable.DOWN and state.identity.startswith("unreadable@")
    way = cluster.way("failover", Wish(rpo=30.0))
    cluster.recover(way, state.identity)
    assert is_up(cluster.observe())


def test_a_machine_that_does_not_answer_is_unknown_and_never_promoted_past(cluster: Cluster) -> None:
    settings = cluster.system.settings
    # 192.0.2.0/24 is for documentation: nothing answers there
    away = settings.members[0].model_copy(update={"host": "192.0.2.1", "address": "192.0.2.1"})
    settings = settings.model_copy(update={"members": (away, settings.members[1])})
    system = Postgres("orders-db", settings, cluster.system.context)
    state = observe_in_time(system)
    assert (state.reachable, state.writable, state.identity) == (Reachable.UNKNOWN, None, "unknown")
    way = next(way for way in system.ways_back(Wish(rpo=30.0)) if way.name == "failover")
    assert way.possible and way.loses is None
    with pytest.raises(CannotError, match="cannot be reached, so it cannot be fenced"):
        list(system.fence(identity=state.identity))
    with pytest.raises(CannotError, match="not known that the old primary cannot write"):
        promote(system, way)
    wish = Wish(rpo=30.0, overrides={"promote-without-fence": "its power was cut"})
    way = next(way for way in system.ways_back(wish) if way.name == "failover")
    promote(system, way)
    assert is_up(observe_in_time(system))


@pytest.mark.parametrize("setting", ["DateStyle = German", "client_encoding = SQL_ASCII"])  # as of a SQL_ASCII database
def test_the_form_in_which_the_server_answers_is_ours(cluster: Cluster, setting: str) -> None:
    with cluster.server("a").session(writes=True) as connection:
        connection.execute(f"alter role salvor set {setting}".encode())
    assert is_up(cluster.observe())
    assert cluster.system.ask("select host(inet_server_addr())", "live") == "127.0.0.11"


def test_a_repository_that_gives_no_answer_closes_its_own_way_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a dead primary and its repository hanging, nothing was planned: not the failover either."""
    silent = f"{cluster.server('a').data}/silent"
    cluster.sandbox.shell.write(silent, "#!/bin/sh\nexec sleep 60\n", mode=0o755)
    monkeypatch.setattr(backrest, "_ANSWERING", 0.5)
    cluster.crash("a")
    settings = cluster.system.settings
    assert settings.pgbackrest
    pgbackrest = settings.pgbackrest.model_copy(update={"program": silent})
    system = Postgres("orders-db", settings.model_copy(update={"pgbackrest": pgbackrest}), cluster.system.context)
    over, physical, *_ = system.ways_back(Wish(rpo=30.0))
    assert over.name == "failover" and over.possible
    assert not physical.possible and "gave no answer within 0.5 s" in physical.why


def test_a_split_brain_is_said(cluster: Cluster) -> None:
    with cluster.server("b").session(writes=True) as connection:
        connection.execute("select pg_promote()")
    state = observe_in_time(cluster.system)
    assert "SPLIT BRAIN" in state.summary and state.address == "127.0.0.12"
    assert "b counts as live" in state.summary and "stop b before anything is fenced" in state.summary
    cluster.server("b").stop("fast")
    assert is_up(cluster.observe()) and cluster.observe().address == "127.0.0.11"
    assert [dict(change.arguments) for change in cluster.system.redundancy()] == [{"member": "b"}]


def facts(cluster: Cluster, member: str) -> Facts:
    found = cluster.system.site.view().of(member).facts
    assert found
    return found


def test_a_lagging_standby_is_measured_by_the_wal_of_the_dead_primary(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.write("a", 5)
    wait_until_replayed(cluster)
    with cluster.server("b").session() as connection:
        connection.execute("select pg_wal_replay_pause()")
    time.sleep(1.1)
    received = clock.now()
    cluster.write("a", 5)
    primary = cluster.server("a")
    with primary.session(writes=True) as connection:
        connection.execute("alter system set max_prepared_transactions = 1")
    primary.stop("fast")
    primary.start()
    assert not facts(cluster, "b").streams_from, "who pauses asks for no more"
    cluster.write("a", 10)
    time.sleep(1.1)
    cluster.write("a", 9)
    with cluster.shop("a") as connection:
        connection.execute("begin; update orders set note = 'paid by two' where id = 4711; prepare transaction 'two'")
        connection.execute("commit prepared 'two'")
    lacked = clock.age(received).total_seconds()
    cluster.crash("a")
    way = cluster.way("failover", Wish(rpo=30.0))
    assert way.possible and way.loses and 1.0 < way.loses < lacked and "20 commits more" in way.why
    dead, standby = map(cluster.system.site.view().of, ("a", "b"))
    known, guessed = lag_of(standby, dead), lag_of(without_programs(standby), dead)
    assert known.lacks == way.loses and guessed.seconds and guessed.lacks is None, "its own WAL was not read"
    way = cluster.way("failover", Wish(rpo=0.5))
    assert not way.possible and "more than the service may lose" in way.why
    with monkeypatch.context() as hurried:
        hurried.setattr(lag, "_READ_SECONDS", 0.001)
        damaged = Wish(rpo=30.0, live_is_sound=False, damaged_at=clock.now())
        assert cluster.way("physical", damaged).possible, "too much WAL to read closed this one too"
    wal = cluster.sandbox.data("a") / "pg_wal"
    for segment in wal.glob("0000000?????????????????"):
        segment.rename(segment.with_name(segment.name + ".elsewhere"))
    way = cluster.way("failover", Wish(rpo=30.0))
    assert way.loses is None and "is not known" in way.why, "WAL that was removed has no commits, and says nothing"


def test_a_query_is_one_statement_that_reads(cluster: Cluster) -> None:
    assert cluster.system.ask("select 40 + 2", "live") == 42
    assert cluster.system.ask("select 100 % 7 where 'a%' like 'a%'", "standby b") == 2
    assert cluster.system.ask("select count(*) from orders", "address:127.0.0.12") == 80000
    for statement in (
        "delete from orders",
        "commit; delete from orders",
        "select pg_sleep(1); select 1",
        "select nothing",
    ):
        with pytest.raises(CannotError, match="does not answer the query"):
            cluster.system.ask(statement, "live")
    with pytest.raises(CannotError, match="nothing is staged"):
        cluster.system.ask("select 1", "side-data")
    assert cluster.system.ask("select count(*) from orders", "live") == 80000


def test_live_is_who_was_seen_until_something_is_changed(cluster: Cluster) -> None:
    question = "select host(inet_server_addr())"
    identity = cluster.observe().identity
    assert cluster.system.ask(question, "live") == "127.0.0.11"
    cluster.recover(cluster.way("failover", Wish(rpo=30.0)), identity)
    assert cluster.system.ask(question, "live") == "127.0.0.12"


def test_a_wrong_password_of_the_operator(cluster: Cluster) -> None:
    wrong = cluster.sandbox.place / "wrong"
    wrong.write_text("not it\n")
    wrong.chmod(0o600)
    operator = cluster.system.settings.operator.model_copy(update={"password": f"file:{wrong}"})
    settings = cluster.system.settings.model_copy(update={"operator": operator})
    system = Postgres("orders-db", settings, cluster.system.context)
    state = observe_in_time(system)
    assert state.reachable is Reachable.UNKNOWN and "authentication failed" in state.summary
    with pytest.raises(CannotError, match=r"not as the inventory describes it: a: .*authentication failed"):
        system.ways_back(Wish(rpo=30.0))
    pids = cluster.server("a").processes()
    with pytest.raises(CannotError, match="cannot log in") as error:
        list(system.fence(identity=state.identity))
    assert error.value.safe == "nothing was fenced"
    assert cluster.server("a").processes() == pids
    cluster.write("a", 1)

    server = cluster.server("a")
    access = f"{server.data}/pg_hba.conf"
    rules = f"host all salvor 127.0.0.0/8 trust\n{cluster.sandbox.shell.read(access)}"
    cluster.sandbox.shell.write(access, rules)
    server.reload()
    assert until(lambda: is_up(system.observe()))
    with pytest.raises(CannotError, match="kept out the operator 'salvor' too"):
        list(system.fence(identity=state.identity))
    assert cluster.sandbox.shell.read(access) == rules
    assert until(lambda: is_up(system.observe()))
    cluster.write("a", 1)


def test_a_server_that_keeps_the_operator_alone_out_is_no_broken_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose role might not log in any more, or without its database `postgres`, was killed and restored."""
    server = cluster.server("a")
    pids, identity = server.processes(), cluster.observe().identity
    access = f"{server.data}/pg_hba.conf"
    rules = cluster.sandbox.shell.read(access) or ""

    def refused(mend: str) -> str:
        system = cluster.other_incident().system
        with pytest.raises(CannotError, match="does not let the operator in") as error:
            system.ways_back(Wish(rpo=30.0))
        assert mend in error.value.hint
        return error.value.what

    with server.connect("orders", deadline=30.0, writes=True) as still_there:
        still_there.execute("alter role salvor nologin")
        assert "not permitted to log in" in refused("alter role ... login")
        with pytest.raises(CannotError, match="cannot log in") as error:
            cluster.do("fence", identity=identity)
        assert error.value.safe == "nothing was fenced" and server.processes() == pids
        still_there.execute("alter role salvor login")

        still_there.execute("alter database postgres allow_connections false")
        assert "not currently accepting connections" in refused("allow_connections true")
        still_there.execute("alter database postgres rename to elsewhere")
        assert 'database "postgres" does not exist' in refused("create database postgres")
        still_there.execute("alter database elsewhere rename to postgres")
        still_there.execute("alter database postgres allow_connections true")

    cluster.sandbox.shell.write(access, f"host all salvor all reject\n{rules}")
    server.reload()
    assert until(lambda: "pg_hba.conf rejects" in cluster.observe().summary)
    refused("by its pg_hba.conf")
    monkeypatch.setattr(fence, "_RELOAD_SECONDS", 0.5)
    cluster.sandbox.shell.write(access, f"a wrong line, so that no other is read\nhost all salvor all reject\n{rules}")
    with pytest.raises(CannotError, match="cannot log in") as error:
        cluster.do("fence", identity=identity)
    assert error.value.safe.startswith("open sessions still work; new ones") and server.processes() == pids
    cluster.sandbox.shell.write(access, f"host all salvor all reject\n{rules}")
    cluster.write("a", 1)
    cluster.do("fence", identity=identity)  # its block stands above that
    assert server.processes() == pids
    cluster.sandbox.shell.write(access, rules)
    server.reload()
    assert until(lambda: is_up(cluster.observe()))

    with server.session() as connection:
        row = connection.execute("select oid from pg_database where datname = current_database()").fetchone()
    assert row
    cluster.sandbox.shell.run(["mv", f"{server.data}/base/{row[0]}", f"{server.data}/base/gone"])
    assert "subdirectory" in cluster.observe().summary
    assert cluster.way("physical", Wish(rpo=30.0)).possible, "this one is broken"


@pytest.mark.parametrize(
    ("wrong", "seen", "mend"),
    [
        ({"port": 1}, r"it runs and listens on port \d+, not on 1", "the member's port:"),
        ({"address": "127.0.0.9"}, r"it runs and listens on its own machine alone .*, not on 127.0.0.9", "address:"),
        ({"data": "/nowhere/data"}, "works in {data}, not in /nowhere/data", "data: or host:"),
        ({"configuration": "/nowhere/own.conf"}, "postgresql.conf is not /nowhere/own.conf", "configuration: {data}/"),
        ({"programs": "/nowhere/bin"}, "there is no postgres in /nowhere/bin", "mend programs:"),
    ],
)
def test_a_server_that_the_inventory_describes_wrongly_is_no_broken_one(
    cluster: Cluster, wrong: dict[str, object], seen: str, mend: str
) -> None:
    """One with another port was to be killed and restored; the others were found while a copy was being made."""
    settings = cluster.system.settings
    first, second = settings.members
    if "programs" in wrong:
        settings = settings.model_copy(update=wrong)
    else:
        settings = settings.model_copy(update={"members": (first.model_copy(update=wrong), second)})
    system = Postgres("orders-db", settings, cluster.system.context)
    data = cluster.server("a").data
    with pytest.raises(CannotError, match=seen.format(data=data)) as error:
        system.ways_back(Wish(rpo=30.0))
    assert error.value.safe == "nothing was changed" and mend.format(data=data) in error.value.hint
    state = observe_in_time(system)
    assert error.value.what.partition("a: ")[2].removesuffix(".") in state.summary
    told, *_ = state.misdescribed  # which assess says while nothing is broken
    assert told.startswith("a: ") and mend.format(data=data) in told


def test_a_data_directory_by_another_name_and_a_server_that_starts_are_described_well(cluster: Cluster) -> None:
    first, second = cluster.system.settings.members
    link = cluster.sandbox.data("a").with_name("by-another-name")
    link.symlink_to(first.data)
    members = (first.model_copy(update={"data": str(link)}), second)
    settings = cluster.system.settings.model_copy(update={"members": members})
    system = Postgres("orders-db", settings, cluster.system.context)
    try:
        assert system.observe().misdescribed == () and system.ways_back(Wish(rpo=30.0))
    finally:
        link.unlink()
    seen = cluster.system.site.view().of("a")
    assert seen.look
    starting = replace(seen.look, port=None)
    assert mistake_in(seen.member.server, starting, "FATAL:  the database system is starting up") is None


def promote(system: Postgres, way: WayBack) -> None:
    list(system.apply(Change(system.name, "promote", way.promote, "a test", no_undo="a test")))


def test_a_server_whose_port_another_one_holds_says_so(cluster: Cluster) -> None:
    """As the copy of a drill that was killed holds the port of the next one's."""
    holder, other = cluster.server("a"), cluster.server("b")
    other.stop("fast")
    other.launch({"listen_addresses": holder.address, "port": str(holder.port)})
    until = time.monotonic() + 10
    while other.processes() and time.monotonic() < until:
        time.sleep(0.1)
    assert "tail -n 30" in other.ended().hint
    assert (
        f"another server holds {holder.address}:{holder.port}"
        in replace(other, address=holder.address, port=holder.port).ended().hint
    )
