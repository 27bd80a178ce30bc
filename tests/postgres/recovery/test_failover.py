from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import yaml
from salvor import checks, console, journal
from salvor.change import ABSENT, UNSEEN, WRONG_ITSELF, Level, Reachable
from salvor.checks import Check
from salvor.errors import CannotError, NotProvenError, OutcomeUnknownError
from salvor.postgres import failover, fence, lag
from salvor.postgres.lag import lag_of, missing_commits
from salvor.sandbox import layout, processes
from salvor.session import aftermath
from salvor.session.opening import open_session
from salvor.show import Plain
from salvor.ssh.settings import SshSettings
from salvor.systems.postgres import Postgres
from salvor.wish import Wish

from tests.postgres.recovery.clusters import Cluster, is_up, lsn, now, wait_until_archived, without_programs

WISH = Wish(rpo=30.0)


def test_a_killed_primary_is_replaced_by_its_standby(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.write("a", 50)
    cluster.crash("a")
    state = cluster.observe()
    assert (state.reachable, state.writable) == (Reachable.DOWN, None)
    way = cluster.way("failover", WISH)
    assert way.loses == 0.0, way.why
    view = cluster.system.site.view()
    dead, received = view.of("a"), view.of("b").facts.received  # type: ignore[union-attr]
    assert missing_commits(dead, received) == (0, None)
    assert missing_commits(without_programs(dead), received) is None, "what nobody read is no zero"
    assert lag_of(view.of("b"), without_programs(dead)).seconds is None
    cluster.sandbox.shell.run(["mkdir", f"{cluster.sandbox.root}/a/slow"])
    cluster.sandbox.shell.write(f"{cluster.sandbox.root}/a/slow/pg_waldump", "#!/bin/sh\nexec sleep 60\n", mode=0o700)
    slow = replace(dead.member, server=replace(dead.member.server, programs=f"{cluster.sandbox.root}/a/slow"))
    monkeypatch.setattr(lag, "_READ_SECONDS", 0.3)
    closed = failover.way(replace(view, sightings=(replace(dead, member=slow), view.of("b"))), WISH)
    assert not closed.possible and "did not end within" in closed.why, "it ends no assess, and is not taken"

    with pytest.raises(CannotError, match="not known that the old primary cannot write"):
        cluster.do("promote", **way.promote)

    proof = {finding.check: finding for finding in cluster.system.verify(way, WISH)}
    assert proof["freshness"].lacks == 0.0, proof["freshness"]
    cluster.recover(way, state.identity)
    after = cluster.observe()
    assert is_up(after) and after.identity == way.identity and after.address == "127.0.0.12"
    assert cluster.missing("b") == set()
    cluster.write("b", 1)
    cluster.do("promote", **way.promote)  # a second call finds its work done


def test_a_standby_whose_replay_somebody_paused_is_promoted_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.write("a", 5)
    with cluster.server("b").session() as connection:
        connection.execute("select pg_wal_replay_pause()")
    cluster.write("a", 20)
    before = cluster.other_incident()  # what is seen is taken for what there is, for a moment
    [standby] = before.observe().staged
    assert not standby.shows_all
    with monkeypatch.context() as slow:
        slow.setattr(lag, "_READ_SECONDS", 0.001)
        assert before.way("failover", WISH).loses is not None, "the primary says what it has, whoever cannot be read"
    cluster.crash("a")
    view = cluster.system.site.view()
    guessed = lag_of(without_programs(view.of("b")), view.of("a"))
    assert (guessed.seconds, guessed.lacks) == (0.0, None), "a commit may be in what was not read"
    way = cluster.way("failover", WISH)
    assert way.loses == 0.0 and "it has every commit that is in the old primary's WAL" in way.why
    cluster.recover(way, cluster.observe().identity)
    assert is_up(cluster.observe()) and cluster.observe().address == "127.0.0.12"
    assert cluster.missing("b") == set()


def replay_late(cluster: Cluster, member: str) -> None:
    """Have a standby replay an hour late."""
    with cluster.server(member).session(writes=True) as connection:
        connection.execute("alter system set recovery_min_apply_delay = '1h'")
        connection.execute("select pg_reload_conf()")


def test_a_standby_that_replays_late_has_what_it_received_and_what_it_shows_says_nothing_of_that(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster.write("a", 1)
    replay_late(cluster, "b")
    time.sleep(1.2)  # what it shows is older than may be lost
    cluster.write("a", 20)
    with cluster.shop("a") as connection:
        connection.execute("update orders set amount = 0 where id = 4711")
    [standby] = cluster.observe().staged
    assert not standby.shows_all
    check = {
        "name": "prices",
        "system": "orders-db",
        "sql": "select count(*) from orders where amount <= 0",
        "at_most": 0,
    }
    describe(cluster, tmp_path, monkeypatch, checks=[check])
    with pytest.raises(CannotError, match="failover: the standby has the same damage"):
        open_session("orders", Plain(io.StringIO()), platform="shop").plan("assess")

    cluster.crash("a")
    tight = Wish(rpo=1.0)
    way = cluster.way("failover", tight)
    assert way.possible and way.loses == 0.0, way.why
    assert "MB of WAL that it has received, as it replays 1 h 00 min late on purpose" in way.why
    proof = {finding.check: finding for finding in cluster.system.verify(way, tight)}
    assert (proof["freshness"].level, proof["freshness"].lacks) == (Level.PASS, 0.0), proof["freshness"]
    assert "are not replayed yet" in proof["replayed"].figure
    begun = time.monotonic()
    cluster.recover(way, cluster.observe().identity)
    assert time.monotonic() - begun < 6.0, "nobody waits for the delay"
    assert is_up(cluster.observe()) and cluster.missing("b") == set()


def test_a_standby_that_has_the_damage_is_no_way_back_from_a_frozen_primary(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = {"system": "orders-db", "at_most": 0}
    prices = good | {"name": "prices", "sql": "select count(*) from orders where amount <= 0"}
    untold = good | {"name": "untold", "sql": "select count(pg_sleep(9))", "deadline": 0.2}
    describe(cluster, tmp_path, monkeypatch, checks=[prices, untold])

    def set_price(amount: int) -> None:
        with cluster.shop("a") as connection:
            connection.execute("update orders set amount = %s where id = 4711", [amount])
        cluster.write("a", 1)
        assert processes.until(lambda: not cluster.missing("b"), 10)

    set_price(0)
    cluster.signal_all("a", signal.SIGSTOP)
    with pytest.raises(CannotError, match="the standby has the same damage") as closed:
        open_session("orders", Plain(io.StringIO()), platform="shop").plan("assess")
    assert "prices (standby b): 1 (limit at most 0)" in closed.value.what
    assert "inv restore --service=orders --platform=shop --failed-at=TIME" in closed.value.hint
    cluster.signal_all("a", signal.SIGCONT)
    set_price(1)
    cluster.signal_all("a", signal.SIGSTOP)
    session = open_session("orders", Plain(io.StringIO()), platform="shop")
    with pytest.raises(NotProvenError, match="untold") as unproven:
        console.recover(session, Plain(io.StringIO()), yes=True)  # to the standby, of which nobody can tell
    assert "--failed-at=TIME" in unproven.value.hint
    assert "the data of what was live is as it was" in unproven.value.safe
    assert "takes that back, but starts no server: orders-db is down" in unproven.value.safe
    said = io.StringIO()
    aftermath.undo(session.incident.id, Plain(said), yes=True)
    assert "NOTE: orders-db is down" in said.getvalue() and "undo starts none" in said.getvalue()
    assert f"as before {session.incident.id}, except for what is down." in said.getvalue()
    cluster.server("a").start()
    assert is_up(cluster.observe())


def test_of_two_standbys_that_lose_nothing_the_one_is_promoted_that_is_ready_first(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_standby(cluster, monkeypatch, copied="b", follows="a")
    first = cluster.other_incident()
    replay_late(first, "b")
    begun, least = now(first), lsn(first)
    first.write("a", 5)
    more = lsn(first)
    first.write("a", 5)
    assert processes.until(lambda: not first.missing("c"), 20)
    assert first.way("failover", WISH).stage == "standby c", "of a primary that hands over"
    first.crash("a")
    assert first.way("failover", WISH).stage == "standby c"
    view = first.system.site.view()
    for best, other in (("b", "c"), ("c", "b")):
        has = {best: more, other: least}
        early = [
            replace(one, facts=replace(one.facts, lsn=has[name], received=has[name], fresh=begun))
            for name, one in ((name, view.of(name)) for name in has)
            if one.facts
        ]
        way = failover.way(replace(view, sightings=(view.of("a"), *early)), WISH)
        assert way.loses and way.stage == f"standby {best}", "of what both lack, the one that has more"


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_fence_survives_a_restart_and_lets_only_the_operator_in(cluster: Cluster) -> None:
    identity = cluster.observe().identity
    session = cluster.shop("a")
    killed = cluster.begin("fence", identity=identity)
    assert next(killed).label == "ending the sessions"
    killed.close()
    session.execute("select 1")
    assert cluster.observe().writable is True, "nothing is fenced by the rules alone"
    cluster.do("unfence", identity=identity)
    server = cluster.server("a")
    frozen = cluster.shop("a")
    os.kill(frozen.info.backend_pid, signal.SIGSTOP)
    with pytest.raises(OutcomeUnknownError, match="Not every session"):
        fence._end_sessions(server, deadline=0.5)
    os.kill(frozen.info.backend_pid, signal.SIGCONT)
    with socket.create_connection((server.address, server.port), timeout=10) as logging_in:
        begun = struct.pack("!i", 196608) + b"user\0shop\0database\0orders\0\0"
        logging_in.sendall(struct.pack("!i", 4 + len(begun)) + begun)
        assert logging_in.recv(1) == b"R", "it was let in by the old rules, and is asked for its password"
        [login] = [one.pid for one in server.all_processes() if b"authentication" in command_of(one.pid)]
        os.kill(login, signal.SIGSTOP)
        with pytest.raises(OutcomeUnknownError, match="Not every session"):
            fence._end_sessions(server, deadline=0.5)
        os.kill(login, signal.SIGCONT)
        session = cluster.shop("a")
        cluster.do("fence", identity=identity)
        while logging_in.recv(1000):
            pass
    state = cluster.observe()
    assert state.identity == identity and state.writable is False and state.reachable is Reachable.UP
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError, match="rejects"):
            cluster.shop("a")
        with server.session() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        server.stop("fast")
        assert cluster.observe().writable is False
        server.start()
    cluster.do("fence", identity=identity)
    cluster.do("unfence", identity=identity)
    cluster.do("unfence", identity=identity)
    assert is_up(cluster.observe())
    cluster.write("a", 1)
    session = cluster.shop("a")
    cluster.sandbox.shell.run(["sh", "-c", 'echo "a wrong line" >> "$1/pg_hba.conf"', "sh", server.data])
    cluster.do("fence", identity=identity)
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    with pytest.raises(psycopg.OperationalError):
        cluster.shop("a")
    assert cluster.observe().writable is False, (
        "it does not read its new rules as long as one line is wrong: it is stopped"
    )


def test_a_frozen_primary_is_dead_before_the_standby_is_promoted(cluster: Cluster) -> None:
    cluster.write("a", 20)
    session = cluster.shop("a")
    cluster.signal_all("a", signal.SIGSTOP)
    begun = time.monotonic()
    state = cluster.observe()
    assert time.monotonic() - begun < 5.5
    assert (state.reachable, state.writable) == (Reachable.UNKNOWN, None)
    way = cluster.way("failover", WISH)
    cluster.do("fence", identity=state.identity)
    assert cluster.server("a").processes() == []
    cluster.recover(way, state.identity)
    cluster.signal_all("a", signal.SIGCONT)
    assert cluster.server("a").processes() == []
    with pytest.raises(psycopg.OperationalError):
        session.execute("insert into orders (reference, customer_id, amount, status) values ('late', 1, 1, 'paid')")
    cluster.server("a").start()  # whoever starts it again starts a fenced one
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        cluster.shop("a")
    after = cluster.observe()
    assert is_up(after) and after.identity == way.identity
    assert cluster.missing("b") == set()


def test_a_lost_data_directory_leaves_processes_that_are_killed(cluster: Cluster) -> None:
    cluster.write("a", 20)
    cluster.sandbox.shell.run(["rm", "-rf", cluster.server("a").data])
    state = cluster.observe()
    assert state.identity == ABSENT and state.writable is not False
    way = cluster.way("failover", WISH)
    cluster.do("fence", identity=state.identity)
    assert cluster.server("a").processes() == []
    cluster.recover(way, state.identity)
    assert is_up(cluster.observe())
    assert cluster.missing("b") == set()


def test_a_live_primary_hands_over_everything(cluster: Cluster) -> None:
    way = cluster.way("failover", WISH)
    identity = cluster.observe().identity
    with cluster.server("b").session(writes=True) as connection:
        connection.execute("alter system set restore_command = ''")  # as where no archive has it
        connection.execute("select pg_reload_conf()")
        ((receiver,),) = connection.execute("select pid from pg_stat_wal_receiver").fetchall()
    os.kill(receiver, signal.SIGSTOP)
    with cluster.shop("a") as connection:
        connection.execute("update orders set amount = amount + 1 where id % 2 = 0")  # more than is under way on a line
    cluster.write("a", 50)
    cluster.do("fence", identity=identity)
    threading.Timer(0.5, os.kill, (receiver, signal.SIGCONT)).start()  # it is behind when its primary is to stop
    cluster.do("promote", **way.promote)
    assert cluster.missing("b") == set()
    assert cluster.server("a").processes() == []


def test_a_primary_without_room_for_the_operator_is_fenced_alive(cluster: Cluster) -> None:
    """Killed, it would send its standby nothing more."""
    pids = cluster.server("a").processes()
    with ExitStack() as taken:
        with suppress(psycopg.OperationalError):
            while True:
                taken.callback(cluster.server("a").connect(deadline=60.0).close)
        state = cluster.observe()
        assert "too many clients" in state.summary
        with pytest.raises(CannotError, match=r"all connection slots of .* are in use") as raised:
            cluster.way("failover", WISH)
        assert f"--ppid {pids[0]} names the sessions" in raised.value.hint
        assert cluster.way("failover", replace(WISH, ways=("failover",))).possible
        cluster.do("fence", identity=state.identity)
    state = cluster.observe()
    assert state.reachable is Reachable.UP and state.writable is False
    assert cluster.server("a").processes() == pids


def test_a_line_of_pg_hba_conf_that_is_wrong_keeps_nobody_from_fencing_it_alive(cluster: Cluster) -> None:
    path = cluster.sandbox.data("a") / "pg_hba.conf"
    before = path.read_text() + "this is nonsense\n"
    path.write_text(before)
    session, identity = cluster.shop("a"), cluster.observe().identity
    cluster.do("fence", identity=identity)
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        cluster.shop("a")
    cluster.do("unfence", identity=identity)
    assert path.read_text() == before and is_up(cluster.observe())


def test_a_primary_that_dies_right_after_its_promotion_is_restored_on_its_own_timeline(cluster: Cluster) -> None:
    """Its control file knows of the promotion from the next checkpoint on only."""
    cluster.write("a", 5)
    cluster.recover(cluster.way("failover", WISH), cluster.observe().identity)
    cluster.write("b", 20)
    cluster.crash("b")
    again = cluster.other_incident()
    state = again.observe()
    assert state.address == "127.0.0.12" and not is_up(state)
    way = again.way("physical", WISH)
    assert way.arguments and (way.arguments["member"], way.arguments["timeline"]) == ("b", 2)
    again.recover(way, state.identity)
    assert is_up(again.observe()) and again.missing("b") == set()


def add_standby(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, copied: str, follows: str) -> None:
    """A third member `c`, copied from the data of one that is stopped meanwhile."""
    monkeypatch.setitem(layout.ADDRESSES, "c", "127.0.0.13")
    cluster.server(copied).stop("fast")
    folder = cluster.sandbox.root / "c"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copystat(cluster.sandbox.root / "b", folder)
    cluster.sandbox.give(folder)
    subprocess.run(["cp", "-a", cluster.sandbox.data(copied), folder / "data"], check=True)
    cluster.sandbox.shell.run(["touch", f"{folder}/data/standby.signal"])
    its, upstream = cluster.server("c").address, cluster.server(follows).address
    settings = (cluster.sandbox.root / "b" / "member.conf").read_text()
    settings = settings.replace("127.0.0.12", its).replace("127.0.0.11", upstream)
    cluster.sandbox.shell.write(f"{folder}/member.conf", settings.replace(f"{cluster.sandbox.root}/b", str(folder)))
    for member in (copied, "c"):
        cluster.server(member).start()


def test_a_standby_that_was_left_behind_with_more_wal_than_the_one_that_follows_is_not_promoted(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = now(cluster)
    cluster.write("a", 1)
    given_up = set(cluster.acknowledged)
    with cluster.shop("a") as connection:
        connection.execute("update orders set amount = amount + 1 where id % 4 = 0")  # more WAL than is written later
    cluster.recover(cluster.way("physical", Wish(at=moment)), cluster.observe().identity)
    cluster.write("a", 5)
    add_standby(cluster, monkeypatch, copied="a", follows="a")
    again = cluster.other_incident()
    again.crash("a")
    shutil.rmtree(cluster.sandbox.data("a"))
    way = again.way("failover", WISH)
    assert way.possible and way.stage == "standby c", way.why
    again.recover(way, again.observe().identity)
    assert again.missing("c") == given_up


def test_a_second_standby_takes_over_when_the_first_dies_right_after_its_promotion(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same is true of the control file of who follows: it is on the new timeline all the same, not left behind."""
    add_standby(cluster, monkeypatch, copied="b", follows="b")
    cluster.write("a", 5)
    first = cluster.other_incident()
    assert list(first.system.redundancy()) == [], "c follows a by b"
    first.crash("a")
    first.recover(first.way("failover", WISH), first.observe().identity)
    first.write("b", 20)
    assert processes.until(lambda: not first.missing("c"), 20)
    first.crash("b")
    second = first.other_incident()
    way = second.way("failover", WISH)
    assert way.possible and way.loses == 0.0, way.why
    second.recover(way, second.observe().identity)
    assert is_up(second.observe()) and second.observe().address == "127.0.0.13" and second.missing("c") == set()


def known_as(cluster: Cluster, name: str, address: str) -> Postgres:
    """The same cluster, of which the inventory has another address of a member than replication uses."""
    settings = cluster.system.settings
    members = [one.model_copy(update={"address": address} if one.name == name else {}) for one in settings.members]
    return Postgres("orders-db", settings.model_copy(update={"members": tuple(members)}), cluster.system.context)


def test_the_old_primary_is_rebuilt_as_a_standby(cluster: Cluster) -> None:
    cluster.write("a", 5)
    cluster.crash("a")
    with pytest.raises(CannotError, match=r"There is no live primary that could be copied: a .*, down"):
        list(cluster.system.redundancy())
    old = cluster.observe().identity
    cluster.recover(cluster.way("failover", WISH), old)
    with pytest.raises(CannotError, match="b cannot be rebuilt: the live primary is"):
        cluster.do("rebuild_standby", member="b")
    planned = list(cluster.system.redundancy())
    assert [(change.verb, dict(change.arguments)) for change in planned] == [("rebuild_standby", {"member": "a"})]
    data = cluster.sandbox.data("a")
    data.rename(f"{data}.disk")
    data.symlink_to(f"{data}.disk")
    with pytest.raises(CannotError, match="is a mount point or a link"):
        list(cluster.system.apply(planned[0]))
    data.unlink()
    data.with_name(f"{data.name}.disk").rename(data)
    with cluster.server("b").session(writes=True, deadline=60.0) as connection:
        connection.execute("alter system set hot_standby = off")  # as its copy would have it
        begun = time.monotonic()
        with pytest.raises(CannotError, match=r"hot_standby is off in .*/b/data/postgresql.conf"):
            list(cluster.system.apply(planned[0]))
        assert time.monotonic() - begun < 10.0, "nobody waits for an answer"
        connection.execute("alter system reset hot_standby")
    own = cluster.server("a").setting("primary_conninfo") or cluster.server("b").setting("primary_conninfo")
    for each in "ab":
        with (cluster.sandbox.data(each) / "postgresql.auto.conf").open("a") as settings:
            settings.write("primary_conninfo = ''\n")
    with pytest.raises(CannotError, match="No member has a primary_conninfo") as untold:
        list(cluster.system.apply(planned[0]))
    mend = untold.value.hint.partition(" (")[0].replace("user=ROLE passfile=FILE", f"{own}")
    password = {"PGPASSWORD": cluster.server("b").operator.secret(), "PATH": os.environ["PATH"]}
    subprocess.run(["sh", "-c", mend], env=password, check=True, timeout=10)
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"primary_conninfo = '{cluster.server('b').setting('primary_conninfo')} hostaddr=127.0.0.13'\n")
    list(cluster.system.apply(planned[0]))
    pids = cluster.server("a").processes()
    list(cluster.system.apply(planned[0]))
    assert cluster.server("a").processes() == pids, "a second call finds its work done"
    assert list(cluster.system.redundancy()) == []
    assert list(known_as(cluster, "b", "127.12").redundancy()) == [], "as of a network for replication alone"
    cluster.write("b", 5)
    kept = cluster.observe().kept
    assert [one.identity for one in kept] == [old]
    with pytest.raises(CannotError, match="it was not removed"):
        cluster.do("discard", identity=cluster.observe().identity, kept=kept[0].name)
    assert cluster.observe().kept == kept
    cluster.do("discard", identity=old, kept=kept[0].name)
    assert cluster.observe().kept == ()


def describe(
    cluster: Cluster,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    first_member: Mapping[str, object] | None = None,
    checks: Sequence[Mapping[str, object]] = (),
) -> None:
    """An inventory of the platform `shop`, whose service `orders` is the cluster."""
    monkeypatch.setenv("SALVOR_INVENTORY", str(place))
    monkeypatch.setenv("SALVOR_INCIDENTS", str(place / "incidents"))
    system = cluster.system.settings.model_dump(mode="json", exclude_defaults=True) | {"kind": "postgres"}
    system["members"][0] |= first_member or {}
    service = {"rto": "15m", "rpo": "1m", "systems": ["orders-db"], "checks": list(checks)}
    text = yaml.safe_dump({"systems": {"orders-db": system}, "services": {"orders": service}})
    (place / "shop.yaml").write_text(text)


def test_a_recovery_does_not_take_a_check_that_is_wrong_itself_for_bad_data(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = {"name": "orders", "system": "orders-db", "sql": "selekt count(*) from orders", "at_least": 1}

    def do() -> str:
        stream = io.StringIO()
        console.recover(open_session("orders", Plain(stream), platform="shop"), Plain(stream), yes=True)
        return stream.getvalue()

    questions = {
        "selekt 1": Level.UNKNOWN,
        "select 1; select 2": Level.UNKNOWN,
        "-- nothing": Level.UNKNOWN,
        "create table new (id int)": Level.UNKNOWN,
        "select count(*) from lost_table": Level.FAIL,
    }
    for question, level in questions.items():
        asked = Check(name="orders", system="orders-db", sql=question, at_least=1)
        found = checks.run(asked, ask=cluster.system.ask, where="live")
        assert (found.level, found.figure == WRONG_ITSELF) == (level, level is Level.UNKNOWN), found
    describe(cluster, tmp_path, monkeypatch, checks=[check])
    console.assess(open_session("orders", Plain(told := io.StringIO()), platform="shop"), Plain(told))
    assert "nothing is known to be broken" in told.getvalue()
    cluster.crash("a")
    with pytest.raises(NotProvenError, match="its sql is wrong") as refused:
        do()
    assert refused.value.hint.startswith("mend these checks in the inventory, then the same command again")
    describe(cluster, tmp_path, monkeypatch, checks=[check | {"sql": "select count(*) from orders"}])
    assert "orders is back" in do()


def test_what_is_silent_is_promoted_past_at_a_word_only_and_fenced_when_it_is_back(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(*steps: str, **overrides: str) -> str:
        stream = io.StringIO()
        wish = Wish(overrides={name.replace("_", "-"): reason for name, reason in overrides.items()} or None)
        console.recover(
            open_session("orders", Plain(stream), platform="shop", wish=wish), Plain(stream), *steps, yes=True
        )
        return stream.getvalue()

    cluster.write("a", 5)
    cluster.crash("a")
    gone = {"host": "127.0.0.44", "address": "127.0.0.44", "ssh": {"port": 1, "user": "nobody"}}
    describe(cluster, tmp_path, monkeypatch, first_member=gone)
    with pytest.raises(CannotError, match=r"not isolated, and may take writes(.|\n)*promote-without-fence=REASON"):
        do()
    said = do(promote_without_fence="its power was cut, said Kim")
    assert "its power was cut, said Kim" in said and "when it is back: inv isolate --service=orders" in said
    (incident,) = journal.incidents(tmp_path / "incidents")
    assert "overridden" in {line["kind"] for line in journal.Journal.read(incident).lines}
    describe(cluster, tmp_path, monkeypatch)
    cluster.server("a").start()
    assert "SPLIT BRAIN" in cluster.observe().summary
    assert "it runs beside what is live" in do("isolate")
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        cluster.shop("a")
    assert is_up(cluster.observe()) and cluster.observe().address == "127.0.0.12"
    assert "Nothing to do" in do("isolate")


def test_the_one_that_took_over_is_the_primary_also_when_it_is_lost_or_cannot_be_seen(cluster: Cluster) -> None:
    """The old one, fenced and never rebuilt, has the data of before the failover."""
    cluster.write("a", 5)
    cluster.recover(cluster.way("failover", WISH), cluster.observe().identity)
    cluster.write("b", 20)
    wait_until_archived(cluster, "b")
    cluster.crash("b")
    members = cluster.system.settings.members
    gone = {"host": "127.0.0.44", "address": "127.0.0.44", "ssh": SshSettings(port=1, user="nobody")}
    unseen = (members[0], members[1].model_copy(update=gone))
    settings = cluster.system.settings.model_copy(update={"members": unseen})
    blind = Cluster(cluster.sandbox, Postgres("orders-db", settings, cluster.other_incident().system.context))
    assert blind.observe().identity == UNSEEN, "it may still write"
    way = blind.way("physical", WISH)
    assert way.arguments and (way.arguments["member"], way.arguments["timeline"]) == ("a", 2)
    with pytest.raises(CannotError, match="not known that the old primary cannot write"):
        blind.do("promote", **way.promote)

    shutil.rmtree(cluster.sandbox.data("b"))
    again = cluster.other_incident()
    assert again.observe().identity == ABSENT
    way = again.way("physical", WISH)
    assert way.arguments and (way.arguments["member"], way.arguments["timeline"]) == ("b", 2)


def test_the_fence_of_a_primary_stays_while_one_that_was_promoted_after_it_takes_writes(cluster: Cluster) -> None:
    """Somebody promoted the standby amid our restore, which is taken back: users would have written to both."""
    identity = cluster.observe().identity
    cluster.do("fence", identity=identity)
    with cluster.server("b").session(writes=True, deadline=30) as connection:
        connection.execute("select pg_promote()")
        with pytest.raises(CannotError, match="a stays fenced, as b was promoted after it and takes writes"):
            cluster.do("unfence", identity=identity)
        connection.execute("alter system set synchronous_standby_names = 'nobody'")
        connection.execute("select pg_reload_conf()")
        assert processes.until(lambda: cluster.system.site.view().of("b").writable is None, 20)
        with pytest.raises(CannotError, match="a stays fenced"):  # its commits wait, and are on its disk
            cluster.do("unfence", identity=identity)
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        cluster.shop("a")
    cluster.server("b").stop("fast")
    cluster.do("unfence", identity=identity)
    cluster.write("a", 1)
