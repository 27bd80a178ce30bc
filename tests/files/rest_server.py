"""A restic repository on a disk, served over HTTP (restic's REST protocol, read only): slow, frozen or gone at will."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_VERSION_2 = "application/vnd.x.restic.rest.v2"


class Served:
    """What the test may do to the server. `pause` is how long it waits before each piece of 4 KiB of files' data;
    `meanwhile` is called once, before the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pause = 0.0
        self.given = 0
        self.meanwhile: Callable[[], object] | None = None
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._over = threading.Event()
        self._first = threading.Lock()

    @property
    def location(self) -> str:
        return f"rest:http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Listen; a second time on the same port."""
        self._over.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and break those that stand."""
        if self._server:
            self._over.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _path(self, name: str) -> Path:
        kind, _, rest = name.strip("/").partition("/")
        return self.folder / kind / rest[:2] / rest if kind == "data" and rest else self.folder / kind / rest

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = served._path(self.path)
                if body and "/data/" in self.path:
                    with served._first:
                        meanwhile, served.meanwhile = served.meanwhile, None
                        if meanwhile:
                            meanwhile()
                if path.is_dir():
                    files = [{"name": one.name, "size": one.stat().st_size} for one in path.rglob("*") if one.is_file()]
                    content, slowly, code = json.dumps(files).encode(), False, 200
                elif path.is_file():
                    content, slowly, code = path.read_bytes(), "/data/" in self.path, 200
                    if wanted := self.headers.get("Range"):
                        first, _, last = wanted.removeprefix("bytes=").partition("-")
                        content, code = content[int(first) : int(last) + 1 if last else None], 206
                else:
                    self.send_error(404)
                    return
                self.send_response(code)
                self.send_header("Content-Type", _VERSION_2)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for at in range(0, len(content) if body else 0, 4096):
                    if slowly:
                        served.given += 1
                        time.sleep(served.pause)
                    if served._over.is_set():
                        self.connection.close()
                        return
                    self.wfile.write(content[at : at + 4096])

            def log_message(self, format: str, *args: object) -> None: ...

        return Handler


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve the repository in `folder` while the block runs."""
    served = Served(folder)
    served.start()
    try:
        yield served
    finally:
        served.stop()
