"""Where a sandbox lives, whatever stands in it: folders, ports and secrets, so that several can stand side by side."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Self

from salvor import shell
from salvor.errors import CannotError, UsageError

_LAYOUT = "sandbox.json"
_PLAIN = re.compile(r"[A-Za-z0-9/._-]{2,80}")
_OWNER = "this-is-the-sandbox-of"
# Below the range that the kernel gives to outgoing connections, so that none of those takes one of ours.
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Folders:
    """One sandbox: `place` for its files, `root` for its servers' data, who runs the servers, and the ports.

    `run_as` is the operating-system user of PostgreSQL, which refuses to run as root; empty: as we are. Each platform
    that stands in one names itself, its secrets, the folders in the root that belong to the servers' user and those
    that are ours, and the addresses of its servers (each has `database_port` and `side_port`).
    """

    PLATFORM: ClassVar[str]
    SECRETS: ClassVar[tuple[str, ...]]
    SERVER_FOLDERS: ClassVar[tuple[str, ...]]
    FOLDERS: ClassVar[tuple[str, ...]]
    SERVERS: ClassVar[tuple[str, ...]]

    place: Path
    root: Path
    run_as: str
    database_port: int
    side_port: int
    receiver_port: int
    mail_port: int

    @property
    def acknowledged(self) -> Path:
        """What the applications acknowledged, one JSON line each, written by the writer."""
        return self.place / "acknowledged.jsonl"

    @property
    def messages(self) -> Path:
        """The messages that the receiver got, one JSON line each."""
        return self.place / "messages.jsonl"

    @property
    def variables(self) -> Path:
        """What the platform's inventory needs to know; there when the sandbox is whole."""
        return self.place / "variables.yaml"

    @property
    def shell(self) -> shell.Shell:
        """This machine, as the user of the servers."""
        return shell.local(self.run_as or None)

    def log(self, part: str) -> Path:
        """The log of a part that is not a database."""
        return self.place / "logs" / f"{part}.log"

    def secret(self, name: str) -> str:
        """One of SECRETS."""
        return (self.root / "secrets" / name).read_text(encoding="utf-8").strip()

    @classmethod
    def command(cls, name: str) -> str:
        """The command for this platform's sandbox, as a user types it: `up`, `down`, `status`."""
        return f"inv sandbox.{name}" + ("" if cls.PLATFORM == "sandbox" else f" --platform={cls.PLATFORM}")

    @classmethod
    def home(cls) -> Path:
        """The folder of the sandbox that is meant: SALVOR_PLATFORM, or `~/.salvor/PLATFORM`."""
        return Path(os.environ.get(cls._variable()) or cls._usual()).expanduser().absolute()

    @classmethod
    def find(cls, place: Path) -> Self | None:
        """The sandbox in `place`, also a half-made one; None: there is none. Raises CannotError when it is not
        readable.
        """
        path = place / _LAYOUT
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name: data[field.name] for field in fields(cls)}
            return cls(**{**known, "place": Path(data["place"]), "root": Path(data["root"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CannotError(
                f"{path} cannot be read: {error}.",
                hint=f"remove that folder if it holds nothing of yours, then: {cls.command('up')}",
            ) from error

    @classmethod
    def standing(cls) -> Self:
        """The sandbox that stands, whole. Raises CannotError when there is none."""
        found = cls.find(cls.home())
        if not found or not found.variables.exists():
            raise CannotError(f"There is no sandbox in {cls.home()}.", hint=cls.command("up"))
        return found

    @classmethod
    def plan(cls, place: Path) -> Self:
        """A new sandbox for `place`, with ports that are free now. Touches nothing.

        Raises UsageError when its paths do not fit its servers.
        """
        root = cls._root(place)
        for folder in (place, root):
            if not _PLAIN.fullmatch(str(folder)):
                raise UsageError(
                    f"The path {str(folder)!r} cannot be a sandbox's: it goes into configurations and the names of"
                    " sockets, so it may be 80 letters, digits, and the characters . _ - long.",
                    hint=f"name another: {cls._elsewhere()}",
                )
        taken: set[int] = set()
        several = {"database_port": cls.SERVERS, "side_port": (*cls.SERVERS, "127.0.0.1")}
        ports = {
            field.name: free_port(several.get(field.name, ("127.0.0.1",)), taken)
            for field in fields(cls)
            if field.name.endswith("_port")
        }
        return cls(place=place, root=root, run_as="postgres" if os.geteuid() == 0 else "", **ports)

    def make(self) -> None:
        """Make the folders and the secrets that are missing.

        Raises UsageError when one of the folders holds something of somebody else: `remove` would take it along;
        CannotError when they cannot be made.
        """
        try:
            self._make()
        except OSError as error:
            raise CannotError(
                f"The sandbox's folders cannot be made: {error.filename or self.place}: {error.strerror}.",
                hint=f"name others: {self._elsewhere()}",
            ) from error

    def _make(self) -> None:
        self.refuse_others()
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.place / _LAYOUT).exists():
            values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
            write(self.place / _LAYOUT, json.dumps(values, indent=1) + "\n")
        if not self.root.exists():
            self.root.mkdir(parents=True)
        # Not 700 where the servers run as another user, who has to pass; it holds only folders that are closed.
        self.root.chmod(0o711 if self.run_as else 0o700)
        write(self.root / _OWNER, f"{self.place}\n")
        if not self.shell.succeeds(["test", "-x", str(self.root)]):
            raise CannotError(
                f"The user {self.run_as} cannot enter {self.root}, where its servers' data shall be.",
                hint=f"name another folder: {self._variable()}_ROOT=/srv/salvor-sandbox {self.command('up')}",
            )
        for folder in (self.place / "logs", self.root / "secrets", *(self.root / name for name in self.FOLDERS)):
            folder.mkdir(mode=0o700, exist_ok=True)
        for name in self.SERVER_FOLDERS:
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
            self.give(self.root / name)
        for name in self.SECRETS:
            path = self.root / "secrets" / name
            if not path.exists():
                write(path, base64.b64encode(secrets.token_bytes(24)).decode() + "\n")  # base64: what TSIG wants

    def give(self, path: Path) -> None:
        """Make the servers' user the owner."""
        if self.run_as:
            shutil.chown(path, self.run_as, self.run_as)

    def refuse_others(self) -> None:
        """Raise UsageError when `place` or `root` is not this sandbox's."""
        ours = {self.place: (_LAYOUT, f"{_LAYOUT}.new"), self.root: (_OWNER, f"{_OWNER}.new", _LAYOUT)}
        for folder, markers in ours.items():
            names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
            if names and not any(marker in names for marker in markers):
                raise UsageError(
                    f"{folder} holds something that is not a sandbox's, which would be removed with it.",
                    hint=f"name an empty folder: {self._elsewhere()}",
                )
        owner = self.root / _OWNER
        if owner.exists() and (other := owner.read_text(encoding="utf-8").strip()) != str(self.place):
            raise UsageError(
                f"{self.root} belongs to the sandbox in {other}.",
                hint=f"name another folder in {self._variable()}_ROOT",
            )
        if self.root in self.place.parents:
            raise UsageError(
                f"The sandbox's folder {self.place} lies below its own data, {self.root}.",
                hint=f"name another folder in {self._variable()}_ROOT",
            )

    def publish(self) -> None:
        """Write `variables.yaml`, atomically: from now on the inventory can be read."""
        values: dict[str, object] = {"root": self.root, "postgres_user": self.run_as}
        values |= {name: value for name, value in asdict(self).items() if name.endswith("_port")}
        write(self.variables, "".join(f"{name}: {json.dumps(str(value))}\n" for name, value in values.items()))

    def remove(self) -> None:
        """Remove both folders. What says that they are a sandbox's goes last, so that a killed call can be repeated."""
        _remove(self.root)
        _remove(self.place)

    @classmethod
    def _variable(cls) -> str:
        return f"SALVOR_{cls.PLATFORM.upper()}"

    @classmethod
    def _usual(cls) -> Path:
        return Path(f"~/.salvor/{cls.PLATFORM}")

    @classmethod
    def _elsewhere(cls) -> str:
        return f"{cls._variable()}=/tmp/my-{cls.PLATFORM} {cls.command('up')}"

    @classmethod
    def _root(cls, place: Path) -> Path:
        """The folder of the data, which the servers' user can enter: root has another than its home."""
        if named := os.environ.get(f"{cls._variable()}_ROOT"):
            return Path(named).expanduser().absolute()
        if os.geteuid() != 0:
            return place
        usual = f"/var/lib/salvor-{cls.PLATFORM}"
        if place == cls._usual().expanduser():
            return Path(usual)
        return Path(f"{usual}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}")


def write(path: Path, text: str) -> None:
    """Replace a file's content atomically; only its owner reads it."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    new.replace(path)


def is_free(address: str, port: int) -> bool:
    """Whether nothing listens on the port, by TCP or UDP."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            # As servers do, so that the remains of closed connections do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def port_taken(address: str, port: int, wanted_by: str, up: str) -> CannotError:
    """The error for a port that was free when the sandbox was made; `up` is the command that makes it."""
    return CannotError(
        f"{address} port {port}, which {wanted_by} needs, is taken by another process.",
        hint=f"see which: ss -ltnup 'sport = :{port}'; or choose other ports: {up} --fresh",
    )


def free_port(addresses: tuple[str, ...], taken: set[int]) -> int:
    """A port that is free on all these addresses and is none of `taken`, to which it is added. Raises CannotError."""
    for port in random.sample(_PORTS, 200):
        if port not in taken and all(is_free(address, port) for address in addresses):
            taken.add(port)
            return port
    raise CannotError("No free port was found between 20000 and 32000 on loopback.", hint="see what listens: ss -ltnu")


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    markers = [folder / name for name in (_OWNER, _LAYOUT)]
    if not any(marker.exists() for marker in markers) and any(folder.iterdir()):
        raise CannotError(
            f"{folder} is not marked as a sandbox's, so it was not removed.", hint=f"look: ls -la {folder}"
        )
    if os.geteuid() != 0:
        _let_in(folder)
    for entry in folder.iterdir():
        if entry not in markers:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for marker in markers:
        marker.unlink(missing_ok=True)
    folder.rmdir()


def _let_in(folder: Path) -> None:
    """Give the owner every right to the folders below: those that a recovery fenced could not be emptied."""
    for place, names, _ in os.walk(folder):
        for below in (Path(place, name) for name in names):
            if not below.is_symlink():
                below.chmod(0o700)
