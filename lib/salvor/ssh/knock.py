"""Calling many hosts at once, in one thread: whoever answers is handed on, and whoever does not holds up nobody."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from salvor import clock
from salvor.deadline import within

Address = tuple[str, int]
_RESOLVERS = 32


class Knocker:
    """Calls hosts. `answered(name, ...)` gets the connection on which a host began to speak, as an SSH server does by
    itself, or why it did not within `deadline` seconds. No more than `most` connections wait at a time for `served`.
    """

    def __init__(self, answered: Callable[[str, socket.socket | OSError], None], *, deadline: float, most: int) -> None:
        self._answered = answered
        self._deadline = deadline
        self._ready = asyncio.Semaphore(most)
        # Half of the files that we may open; a host that is down takes one as long as it is waited for.
        self._calling = asyncio.Semaphore(max(8, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)))
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve"))

    def call(self, doors: Mapping[str, Address]) -> None:
        """Call every host. Returns when all have answered, or soon after `stop`."""
        try:
            self._loop.run_until_complete(self._call_all(doors))
        finally:
            self._loop.close()

    def served(self) -> None:
        """Somebody took a connection; from any thread."""
        with suppress(RuntimeError):  # all have been called
            self._loop.call_soon_threadsafe(self._ready.release)

    def stop(self) -> None:
        """Call no more; from any thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _call_all(self, doors: Mapping[str, Address]) -> None:
        calls = asyncio.gather(*(self._call(name, *door) for name, door in doors.items()))
        stopped = asyncio.create_task(self._stop.wait())
        both: list[asyncio.Future[Any]] = [calls, stopped]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not calls.done():
            calls.cancel()
        with suppress(asyncio.CancelledError):
            await calls
        stopped.cancel()

    async def _call(self, name: str, host: str, port: int) -> None:
        async with self._calling:
            try:
                line = await _first_word(host, port, self._deadline)
            except OSError as error:
                self._answered(name, error)
                return
            try:
                await self._ready.acquire()
            except BaseException:
                line.close()
                raise
            self._answered(name, line)


async def _first_word(host: str, port: int, deadline: float) -> socket.socket:
    until = clock.monotonic() + deadline
    addresses = await _addresses(host, port, deadline)
    error: OSError = TimeoutError("timed out")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        line = socket.socket(family, kind, protocol)
        line.setblocking(False)
        try:
            async with asyncio.timeout((until - clock.monotonic()) / (len(addresses) - number)):
                await asyncio.get_running_loop().sock_connect(line, address)
                await _readable(line)
            line.setblocking(True)
            return line
        except TimeoutError:
            error = TimeoutError("timed out")
            line.close()
        except OSError as failed:
            error = failed
            line.close()
        except BaseException:
            line.close()
            raise
    raise error


async def _addresses(host: str, port: int, deadline: float) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    def look_up(flags: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)  # type: ignore[return-value]

    try:
        return look_up(socket.AI_NUMERICHOST)
    except socket.gaierror:  # it is a name
        return await asyncio.to_thread(within, deadline, lambda: look_up(0))


async def _readable(line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    spoke = loop.create_future()
    loop.add_reader(line, lambda: None if spoke.done() else spoke.set_result(None))
    try:
        await spoke
    finally:
        loop.remove_reader(line)
