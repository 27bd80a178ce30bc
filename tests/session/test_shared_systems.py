"""Two operators bring two services back whose data the same program works on: neither starts it under the other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest
from salvor import console
from salvor.errors import HeldError
from salvor.journal import incidents
from salvor.session import aftermath
from salvor.show import Plain

from tests import trouble
from tests.test_applications import acts, recover, runs, session
from tests.test_applications import place as place  # the world of services and programs
from tests.test_whole_platform import lose_both
from tests.test_whole_platform import wide as wide  # with a second store of a second service
from tests.world import GOOD, World


@pytest.fixture
def shared(wide: World) -> World:
    """The world in which all programs work on both stores, and both are broken."""
    path = wide.root / "inventory/world.yaml"
    path.write_text(path.read_text().replace("uses: [store]", "uses: [store, shelf]"))
    lose_both(wide)
    return wide


def shelf(shared: World) -> str:
    return (shared.root / "shelf/live/data").read_text()


@dataclass
class Colleague:
    """Another process at work."""

    pid: int

    def end(self) -> int:
        """Its exit code, once it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def colleague(work: Callable[[], object], begun: Callable[[], bool]) -> Iterator[Colleague]:
    """Another process at work, from when `begun` on; it is killed when the block ends before it does."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  the parent's tests must not go on in the child
            os._exit(1)
        os._exit(0)
    try:
        until = time.monotonic() + 20
        while not begun() and time.monotonic() < until:
            time.sleep(0.02)
        yield Colleague(child)
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_who_comes_second_is_told_who_holds_the_program(shared: World) -> None:
    hanging = trouble.order(shared.root, "store", "stage", "hang")
    with colleague(lambda: recover("things"), lambda: not runs(shared)["shop"]) as kim:
        with pytest.raises(HeldError, match=rf"works on office of world now.* process {kim.pid} on") as held:
            recover("more")
        assert [each.name.split("-")[1] for each in incidents(shared.root / "incidents")] == ["things"]
        assert f"--incident={next(incidents(shared.root / 'incidents')).name}" in held.value.hint
        with pytest.raises(HeldError, match="works on shop of world now"):
            recover("shop")  # to whom it is a program that does not run
        assert (runs(shared)["shop"], shelf(shared)) == ("", "bad\n")
        hanging.unlink()
        assert kim.end() == 0
    incident = recover("more")
    assert shared.live == shelf(shared) == GOOD
    assert acts(shared, "shop") == ["stop bad", "start good", "stop good", "start good"]
    hanging = trouble.order(shared.root, "store", "demote", "hang")
    things = next(each.name for each in incidents(shared.root / "incidents") if "-things-" in each.name)
    undoing = lambda: aftermath.undo(things, Plain(), yes=True)  # noqa: E731
    with colleague(undoing, lambda: not runs(shared)["shop"]) as kim:
        with pytest.raises(HeldError, match="of world now"):
            aftermath.undo(incident, Plain(), yes=True)
        hanging.unlink()
        assert kim.end() == 0


def test_who_is_killed_holds_nothing(shared: World) -> None:
    trouble.order(shared.root, "store", "stage", "hang").touch()
    with colleague(lambda: recover("things"), lambda: not runs(shared)["shop"]) as kim:
        os.kill(kim.pid, signal.SIGKILL)
        kim.end()
    recover("more")
    assert (shelf(shared), runs(shared)["shop"]) == (GOOD, "")
    (shared.root / "trouble-store-stage").unlink()
    console.recover(session("things"), Plain(), yes=True)
    assert (shared.live, runs(shared)["shop"]) == (GOOD, "run-1")
