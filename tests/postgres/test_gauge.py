"""What is told of a long reading while it goes on, by a real server, and how it ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
from salvor.change import Level, Progress
from salvor.postgres import fingerprint, gauge, integrity
from salvor.postgres.connection import Operator
from salvor.postgres.gauge import Gauge
from salvor.postgres.server import Server

from tests.waiting import until

A_FILE = 8_000_000
READING = f"""
    do $$ begin
        for i in 1..3 loop
            perform length(pg_read_binary_file('salvor-much', 0, {A_FILE}));
            perform pg_sleep(0.4);
        end loop;
    end $$
"""
ASLEEP = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "_EVERY", 0.1)


def test_how_far_one_statement_is_that_reads_much(server: Server, quick: None) -> None:
    server.shell.run(["truncate", "--size", str(A_FILE), f"{server.data}/salvor-much"])
    heard: list[Progress | None] = []
    with Gauge(server, heard.append, "reading") as told, server.connect(deadline=30.0, writes=True) as connection:
        told.expect(4 * A_FILE)
        told.add(A_FILE)
        with told.reads(connection, 3 * A_FILE):
            time.sleep(0.3)  # what the session read before is no part of it
            connection.execute(READING.encode())
    assert heard[0] == Progress(0, None, "bytes", "reading")
    assert heard[-1] is None
    done = [one.done for one in heard[1:-1] if one]
    assert done == sorted(done)
    assert done[0] == A_FILE
    assert any(2 * A_FILE <= one < 4 * A_FILE for one in done), done
    assert all(one and one.total == 4 * A_FILE for one in heard[1:-1])


def test_that_it_cannot_be_told_how_far_it_is_stops_no_reading(server: Server, quick: None) -> None:
    locked_out = replace(server, operator=Operator("postgres", "file:/nowhere/password"))
    heard: list[Progress | None] = []
    with Gauge(locked_out, heard.append, "reading") as told, server.connect() as connection:
        told.expect(2)
        with told.reads(connection, 1):
            connection.execute("select pg_sleep(0.5)")
        assert until(lambda: heard[-1] == Progress(1, 2, "bytes", "reading")), heard


def test_what_the_listener_raises_ends_the_reading(server: Server, quick: None) -> None:
    """So that Ctrl-C does not wait for a table of a terabyte, in whichever thread it is read."""

    def hear(progress: Progress | None) -> None:
        if progress and progress.total:
            raise KeyboardInterrupt

    def read(told: Gauge) -> None:
        with server.connect(deadline=90.0) as connection, told.reads(connection, 1000):
            connection.execute("select pg_sleep(60)")

    begun = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        ThreadPoolExecutor() as pool,
        Gauge(server, hear, "reading") as told,
    ):
        told.expect(1000)
        pool.submit(read, told).result()
    assert time.monotonic() - begun < 10.0
    with server.connect() as connection:
        assert until(lambda: connection.execute(ASLEEP).fetchone() == (0,)), "the server reads on"


def test_an_interrupt_ends_a_fingerprint_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions are in threads, for which the fingerprint waits before it ends."""

    reads = threading.Event()

    def interrupt(connection: psycopg.Connection[object]) -> None:
        assert reads.wait(20.0)
        raise KeyboardInterrupt

    def asleep(connection: psycopg.Connection[object], batch: object) -> None:
        reads.set()
        connection.execute("select pg_sleep(60)")

    monkeypatch.setattr("salvor.postgres.structure.take", interrupt)
    monkeypatch.setattr("salvor.postgres.rows.read_together", asleep)
    with server.connect(writes=True) as connection:
        connection.execute("create table if not exists read_long (id int)")
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Gauge(server, lambda progress: None, "reading") as told:
        fingerprint.take(server.connect, "postgres", gauge=told)
    assert time.monotonic() - begun < 10.0


def test_what_is_read_of_a_database_adds_up(server: Server, quick: None) -> None:
    heard: list[Progress | None] = []
    with server.connect(writes=True, deadline=30.0) as connection:
        connection.execute("create extension if not exists amcheck")
        connection.execute("analyze")
    with Gauge(server, heard.append, "reading") as told:
        found = integrity.every_page("orders-db", server, "postgres", "1", told)
        assert found.level is Level.PASS, found.detail
        assert until(lambda: heard[-1] and heard[-1].total and heard[-1].done == heard[-1].total), (
            "the pages do not add up"
        )
        found = integrity.amcheck("orders-db", server, "postgres", "1", told)
        assert (found.level, found.figure) == (Level.PASS, "sound"), "how far it was is no complaint"
        fingerprint.take(server.connect, "postgres", gauge=told)
        assert until(lambda: heard[-1] and heard[-1].total and heard[-1].done == heard[-1].total), (
            "the rows do not add up"
        )
