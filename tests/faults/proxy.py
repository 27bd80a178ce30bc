"""A TCP proxy that can fail as a network does. A process of its own: what it does is the word in its mode file.

pass; refuse (nobody listens); hang (accepts, and forwards nothing); slow (each piece waits); reset (RST at the first
answer); lose (the request arrives, its answer is lost and the connection hangs).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from pathlib import Path

_SLOW = 0.15  # seconds a piece
_LOOK = 0.05  # seconds between looks at the mode


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: SO_LINGER of zero seconds."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


class Proxy:
    """Listens on `address` and forwards to `target`, as the mode says at each piece."""

    def __init__(self, address: tuple[str, int], target: tuple[str, int], mode_file: Path) -> None:
        self.address, self.target, self.mode_file = address, target, mode_file

    @property
    def mode(self) -> str:
        return self.mode_file.read_text(encoding="utf-8").strip() or "pass"

    async def serve(self) -> None:
        """For ever; the port is closed while the mode is refuse."""
        server: asyncio.Server | None = None
        while True:
            refuses = self.mode == "refuse"
            if refuses and server:
                server.close()
                server = None
            elif not refuses and not server:
                server = await asyncio.start_server(self.accept, *self.address)
            await asyncio.sleep(_LOOK)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        ways = [
            asyncio.create_task(self.forward(reader, back_writer, writer, is_answer=False)),
            asyncio.create_task(self.forward(back_reader, writer, writer, is_answer=True)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for one in (writer, back_writer):
            one.close()

    async def forward(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, client: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        try:
            while piece := await reader.read(65536):
                while (mode := self.mode) == "hang" or (mode == "lose" and is_answer):
                    await asyncio.sleep(_LOOK)
                if mode in ("reset", "refuse") and is_answer:
                    _reset(client)
                    return
                if mode == "slow":
                    await asyncio.sleep(_SLOW)
                to.write(piece)
                await to.drain()
        except OSError:
            return


if __name__ == "__main__":
    own, other, file = sys.argv[1:]
    (own_host, _, own_port), (host, _, port) = own.rpartition(":"), other.rpartition(":")
    asyncio.run(Proxy((own_host, int(own_port)), (host, int(port)), Path(file)).serve())
