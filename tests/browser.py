"""A real Chromium, driven by its own protocol (CDP) over a websocket: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page of a browser."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=120, suppress_origin=True)
        self._sent = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("id") == self._sent:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']['message']}")
                result: dict[str, Any] = said["result"]
                return result

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of what it promises."""
        said = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            details = said["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return said["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60.0) -> Any:
        """The first value of the expression that is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(RuntimeError):  # the page that was asked went away meanwhile
                if value := self.evaluate(
                    f"(() => {{ try {{ return {expression} }} catch (error) {{ return null }} }})()"
                ):
                    return value
            time.sleep(0.1)
        raise TimeoutError(expression)

    def open(self, address: str) -> None:
        """Go to an address, and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def screenshot(self, path: Path) -> None:
        """A picture of what is seen."""
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def dark(self, on: bool) -> None:
        """Let the reader's system ask for dark pages, or for light ones."""
        wanted = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[wanted])

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium(folder: Path, width: int = 1280, height: int = 1000) -> Iterator[Page]:
    """A page in a headless browser whose files are in `folder`."""
    assert CHROMIUM, "no Chromium is here: apt-get install chromium"
    profile = folder / "profile"
    argv = [CHROMIUM, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    argv += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--no-first-run"]
    argv += ["--no-sandbox"] if os.geteuid() == 0 else []
    running = subprocess.Popen([*argv, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        until = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().strip()):
            assert time.monotonic() < until and running.poll() is None, "Chromium does not start"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"), timeout=30) as answer:
            page = Page(json.load(answer)["webSocketDebuggerUrl"])
        page.call("Page.enable")
        # A window is never narrower than 500; a telephone is.
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a page that nobody looks at does less
        try:
            yield page
        finally:
            page.close()
    finally:
        end(running)


def end(running: subprocess.Popen[bytes]) -> None:
    """Let a process end, or end it."""
    running.terminate()
    try:
        running.wait(20)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
