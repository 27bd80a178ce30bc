"""WAL from a repository that is far away, fetched by a stage of Salvor and by pgBackRest's own restore_command:
`python benchmarks/wal.py --delay=15 --rounds=3`.

The cluster is that of restore.py. Its repository stands behind pgBackRest's TLS server and a proxy that holds all bytes
back for `--delay` milliseconds each way. In each round, in another order, the backup is restored from its disk and
replayed with the one restore_command or the other; seconds are those of the replay, by the server's log.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import statistics
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from restore import JOBS, PGBACKREST, World, free_port, world
from salvor.postgres.backrest import Repository
from salvor.postgres.restore_command import fetching_ahead
from salvor.shell import local

FAR = """
repo1-host=localhost
repo1-host-port={proxy}
repo1-host-type=tls
repo1-host-config={root}/server.conf
repo1-host-cert-file={root}/it.crt
repo1-host-key-file={root}/it.key
repo1-host-ca-file={root}/it.crt
"""

SERVER = """
[global]
repo1-path={root}/repository
lock-path={root}/lock-of-the-server
log-level-file=off
tls-server-address=127.0.0.1
tls-server-port={server}
tls-server-cert-file={root}/it.crt
tls-server-key-file={root}/it.key
tls-server-ca-file={root}/it.crt
tls-server-auth=localhost=orders
"""

BEGIN = """
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout "$root/it.key" -out "$root/it.crt" -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost 2> "$root/said"
chmod 600 "$root/it.key"
echo "$server" > "$root/server.conf"
echo "$far" > "$root/far.conf"
ask $port postgres "select pg_switch_wal()" > "$root/said"
pgbackrest --config="$root/server.conf" server > "$root/said" 2>&1 &
echo $!
"""

REPLAY = """
rm -rf "$side" "$side.log"
mkdir -m 700 "$side"
pgbackrest --config="$root/pgbackrest.conf" --stanza=orders --pg1-path="$side" --process-max=$jobs \
    --type=time --target="$target" --target-action=pause restore
echo "restore_command = '$command'" >> "$side/postgresql.auto.conf"
pg_ctl -D "$side" -s -w -l "$side.log" start -o "-p $side_port -c archive_command="
until grep -q "pausing at the end of recovery" "$side.log"; do sleep 0.05; done
pg_ctl -D "$side" -s -w -m immediate stop
pkill -f -- "--pg1-path=$side" || :
cat "$side.log"
"""


_MOMENT = re.compile(r"^(\S+ \S+) \w+ .*LOG:  (?:redo starts|recovery stopping)", re.M)


class Proxy(threading.Thread):
    """Takes connections on `port`, and hands all bytes on to `server` and back, `delay` seconds late."""

    def __init__(self, port: int, server: int, delay: float) -> None:
        super().__init__(daemon=True)
        self.port, self.server, self.delay = port, server, delay

    def run(self) -> None:
        """Serve for ever."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._connected, "127.0.0.1", self.port) as listener:
            await listener.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self.delay)  # as the handshake of TCP
        there, to_there = await asyncio.open_connection("127.0.0.1", self.server)
        await asyncio.gather(self._hand_on(reader, to_there), self._hand_on(there, writer))
        for end in (writer, to_there):
            end.close()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(late, writer))
        piece = b"-"
        while piece:
            try:
                piece = await reader.read(1 << 18)
            except OSError:
                piece = b""
            late.put_nowait((time.monotonic() + self.delay, piece))
        await sending

    async def _send(self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                due, piece = await late.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()


def replayed(made: World, command: str) -> tuple[float, int]:
    """Restore, replay with that restore_command; its seconds, and how many segments came."""
    said = made.sh(REPLAY, target=made.target.replace("T", " "), command=command.replace("'", "''"))
    moments = [datetime.fromisoformat(found[1]) for found in _MOMENT.finditer(said)]
    return (moments[-1] - moments[0]).total_seconds(), said.count("restored log file")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=15.0, help="milliseconds, each way")
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    asked = parser.parse_args()
    with world(asked.rows, asked.folder, 8, with_dumps=False) as made:
        server, proxy = free_port(), free_port()
        places = {"root": made.root, "server": server, "proxy": proxy}
        near = PGBACKREST.format(root=made.root, port=made.port, jobs=JOBS)
        not_far = re.compile(r"^(repo1-.*|start-fast=y)\n", re.M)
        written = not_far.sub("", near).replace("[global]\n", f"[global]{FAR.format(**places)}")
        serving = made.sh(BEGIN, server=SERVER.format(**places), far=written).strip()
        Proxy(proxy, server, asked.delay / 1000).start()
        far = Repository(local(), f"{made.root}/far.conf", "orders", "orders-db")
        ways = {
            "Salvor": fetching_ahead(far, f"{made.root}/data.side"),
            "one by one": far.archive_get(f"{made.root}/data.side"),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        try:
            for number in range(asked.rounds):
                for name in random.sample(list(ways), len(ways)):
                    seconds, segments = replayed(made, ways[name])
                    taken[name].append(seconds)
                    print(f"  round {number + 1}: {name} {seconds:.1f} s for {segments} segments", flush=True)
        finally:
            made.sh("kill $serving", serving=serving)
    ratios = [ours / theirs for ours, theirs in zip(taken["Salvor"], taken["one by one"], strict=True)]
    for name, seconds_of in taken.items():
        print(f"{name:12}{statistics.median(seconds_of):6.1f} s")
    print(f"Salvor/one by one {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
