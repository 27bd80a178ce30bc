"""One restic repository, as the host sees it on which the tree lives: what is asked of it.

Everything that only reads takes no lock (`--no-lock`): a lock that a killed prune left must not stop a restore, and a
repository under object lock takes none. A prune that goes on meanwhile writes what snapshots need into new pieces, and
removes the old ones: what is then missing is looked for once more, by the new index.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from salvor import clock, secrets
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.files import locations, watching
from salvor.files.said import (
    MISSING,
    DamagedError,
    MissingError,
    Snapshot,
    as_json,
    is_trace,
    last,
    meaning,
    plain,
    snapshot_of,
    spoilt_snapshots,
)
from salvor.shell import Result, Shell

ANSWERING = 20.0
"""Seconds that a repository has to answer a question: restic itself goes on trying for 15 minutes."""
READING = 3600.0
DAY = 24 * 3600.0
_VERSION = re.compile(r"restic (\d+)\.(\d+)")
_HEAD = re.compile(rb"^[-a-zA-Z]{10,13} +\d+ +\d+ +\d+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?=/)", re.MULTILINE)
_RECORD = re.compile(rb"(?=" + _HEAD.pattern + rb")", re.MULTILINE)


@dataclass(frozen=True)
class Repository:
    """One repository of a tree. `environment` holds what the storage asks for, secrets as references; `login` is the
    command that logs in where it is reached by SFTP.
    """

    name: str
    location: str
    shell: Shell
    password: str
    environment: Mapping[str, str] = field(default_factory=dict)
    login: Sequence[str] = ()
    spoilt: list[str] = field(default_factory=list, compare=False)
    """What restic said, when it was last asked, of snapshots that it cannot read, and passes over."""

    @property
    def title(self) -> str:
        """What messages call it, after an article."""
        return f"repository {self.name} ({self.location})"

    @cached_property
    def variables(self) -> dict[str, str]:
        """What restic finds in its environment. Raises CannotError when a secret cannot be had."""
        # What the operator's own shell says of restic would win over, or contradict, what is said here.
        others = dict.fromkeys(("RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND", "RESTIC_REPOSITORY_FILE"), "")
        return {**others, **locations.resolved(self.environment), "RESTIC_PASSWORD": secrets.resolve(self.password)}

    @cached_property
    def version(self) -> tuple[int, int]:
        """restic's version on the host. Raises CannotError when it is not there."""
        try:
            said = self.shell.run(["restic", "version"], deadline=ANSWERING).stdout
        except CannotError as error:
            if isinstance(error, CommandError) and error.exit_code_of_command not in (126, 127):
                raise
            if not isinstance(error, CommandError) and "restic" not in error.what:
                raise
            raise CannotError(
                f"restic is not installed on {self.shell.where}.",
                safe="nothing was changed",
                hint=f"on {self.shell.where}: apt-get install restic",
            ) from error
        found = _VERSION.match(said)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def growth(self) -> str:
        """What `LESS_GARBAGE` takes; empty for a version that knows no limit."""
        return "400" if self.version >= (0, 14) else ""

    def argv(self, *arguments: str) -> list[str]:
        """A restic command for this repository."""
        return ["restic", "--repo", self.location, *locations.options(self.login), *arguments]

    def run(self, argv: Sequence[str], *, deadline: float, hear: Callable[[str], None] | None = None) -> Result:
        """Run `argv` with what the storage asks for in its environment. `hear`, and what it raises: as `Shell.run`."""
        return self.shell.run(argv, environment=self.variables, deadline=deadline, hear=hear)

    def ask(self, *arguments: str, deadline: float | None = None) -> str:
        """What a command that only reads prints. Raises CannotError, also when no answer came in time (MissingError:
        look once more).
        """
        return self._answer(*arguments, deadline=deadline).stdout

    def _answer(self, *arguments: str, deadline: float | None = None) -> Result:
        assert self.version
        deadline = deadline or ANSWERING
        argv = self.argv(*arguments, "--no-lock", "--json")
        try:
            return self.run(argv, deadline=deadline, hear=self._hear)
        except CommandError as error:
            raise self.explained(error.stderr, argv) from error
        except OutcomeUnknownError as error:
            raise CannotError(
                f"The {self.title} gave no answer within {clock.write_duration(deadline)}.",
                hint=f"by hand, {self.shell.by_hand(argv)}",
            ) from error

    # --- what it holds -------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots of everything, newest first; what is `spoilt` is not among them."""
        answer = self._answer("snapshots")
        self.spoilt[:] = spoilt_snapshots(answer.stderr)
        found = [snapshot_of(self.name, one) for one in json.loads(answer.stdout) or ()]
        return sorted(found, key=lambda one: one.taken, reverse=True)

    def listing(self, snapshot: str) -> Iterator[dict[str, Any]]:
        """Every node of a snapshot, parents before what is in them, as `restic ls --json` says it: name, type, path,
        uid, gid, size, mode (the bits of Go's os.FileMode), mtime. Names that are no UTF-8 have U+FFFD for each byte.
        Raises as `ask`.
        """
        argv = self.argv("ls", "--no-lock", "--json", snapshot)
        command = ["sh", "-c", f'{LESS_GARBAGE}exec "$@"', "sh", self.growth, *argv]
        rest = b""
        try:
            for piece in self.shell.pieces(command, deadline=READING, environment=self.variables, hear=self._hear):
                *lines, rest = (rest + piece).split(b"\n")
                several = b",".join(filter(None, lines)).decode()  # one by one, a million entries would take long
                yield from (one for one in json.loads(f"[{several}]") if one.get("struct_type") == "node")
        except CommandError as error:
            raise self.explained(error.stderr, argv) from error

    def links(self, snapshot: str, path: str) -> list[str]:
        """The symbolic links of a snapshot at or below `path`, as `PATH -> TARGET`, in the order of `listing`, with
        U+FFFD for each byte that is no UTF-8. Only restic's listing for people says where links lead; a name may hold
        an arrow, so only the other listing says where it ends. Raises as `ask`.
        """
        argv = self.argv("ls", "--no-lock", "--long", snapshot)
        try:
            pieces = self.shell.pieces(argv, deadline=READING, environment=self.variables, hear=self._hear)
            said = b"".join(pieces)
        except CommandError as error:
            raise self.explained(error.stderr, argv) from error
        links = [as_json(_HEAD.sub(b"", one.removesuffix(b"\n"))) for one in _RECORD.split(said) if one[:1] == b"L"]
        return [one for one in links if one.startswith((f"{path} -> ", f"{path}/"))]

    def restored_size(self, snapshot: str) -> tuple[int, int]:
        """Bytes and entries of a snapshot as they would be restored, each hard linked file once. Reads the whole
        tree of the snapshot, which takes seconds for a million files. Raises as `ask`.
        """
        said = json.loads(self.ask("stats", "--mode", "restore-size", snapshot, deadline=READING))
        return int(said["total_size"]), int(said["total_file_count"])

    def check(self, *, deep: bool) -> None:
        """Let restic check its structure, which reads every folder of every snapshot; `deep`: every byte of the files
        too. Raises DamagedError, and CannotError when it cannot be asked.
        """
        assert self.version
        self.ask("cat", "config")  # one that says nothing would keep the check waiting
        try:
            self._check(deep=deep)
        except MissingError:
            self._check(deep=False)  # quick, where it is lost indeed
            self._check(deep=deep)

    def _check(self, *, deep: bool) -> None:
        def damaged(said: str) -> DamagedError:
            return (MissingError if MISSING.search(said) else DamagedError)(
                f"{last(secrets.mask(said))}; a new backup passes over what it believes to be there, until "
                f"{shlex.join(self.argv('rebuild-index'))} was run on {self.shell.where}",
                safe="it was only read",
            )

        def hear(said: str) -> None:
            if MISSING.search(said):
                raise damaged(said)

        argv = self.argv("check", "--no-lock", *(["--read-data"] if deep else []))
        try:
            self.run(argv, deadline=DAY if deep else READING, hear=hear)
        except CommandError as error:
            if "repository contains errors" not in error.stderr:
                raise self.explained(error.stderr, argv) from error
            raise damaged(error.stderr) from error

    # --- errors --------------------------------------------------------------------------------------------------

    def lost(self, said: str) -> CannotError:
        return CannotError(
            f"The {self.title} was lost midway: {secrets.mask(said)[:300]}",
            safe="what is live is as it was",
            hint="run the same command again when it answers",
        )

    def _hear(self, said: str) -> None:
        watching.see_whether_all_is_there(self, said)

    def explained(self, said: str, argv: Sequence[str]) -> CannotError:
        """What restic's words mean."""
        if self.login and "unable to start the sftp session" in said:  # often without what ssh said: so it is asked
            said += self.shell.run(self.login, deadline=ANSWERING, check=False).stderr
        lines = [plain(line) for line in said.strip().splitlines() if not is_trace(line)]
        said = secrets.mask("\n".join(lines))
        by_hand = f"by hand, {self.shell.by_hand(argv)}"
        return meaning(said, f"the {self.title}", self.shell.where, by_hand)


# Of a restore's time a tenth goes into collecting garbage, of a listing's a quarter; with 0.1 GB more memory it does
# not, as long as a third of what is free is enough: the two run at once. Go knows that limit since 1.19, which restic
# is made with since 0.14.
LESS_GARBAGE = r"""
free=$(awk '$1 == "MemAvailable:" { print int($2 / 3) }' /proc/meminfo 2>/dev/null)
[ "$1" ] && [ "$free" ] && export GOGC="${GOGC:-$1}" GOMEMLIMIT="${GOMEMLIMIT:-${free}KiB}"
shift
"""
