"""Calling many hosts at once, in one thread: whoever answers is handed on, and whoever does not holds up nobody."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from salvor import clock
from salvor.deadline import within

Address = tuple[str, int]
_RESOLVERS = 32


def knock(
    doors: Mapping[str, Address],
    answered: Callable[[str, socket.socket | OSError], None],
    *,
    deadline: float,
    ready: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Call every host; `answered(name, ...)` gets the connection on which it began to speak, as an SSH server does by
    itself, or why it did not within `deadline` seconds. Each connection takes one of `ready` first, which who serves
    it gives back. Returns when all have answered, or soon after `stop` is set.
    """
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve"))
    # Half of the files that we may open; a host that is down takes one as long as it is waited for.
    calling = asyncio.Semaphore(max(8, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)))

    async def call(name: str) -> None:
        async with calling:
            try:
                line = await _first_word(*doors[name], deadline)
            except OSError as error:
                answered(name, error)
                return
            while not ready.acquire(blocking=False):
                await asyncio.sleep(0.01)
            answered(name, line)

    async def call_all() -> None:
        calls = asyncio.gather(*(call(name) for name in doors))
        while not calls.done():
            if stop.is_set():
                calls.cancel()
            await asyncio.wait([calls], timeout=0.2)

    try:
        loop.run_until_complete(call_all())
    finally:
        loop.close()


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
