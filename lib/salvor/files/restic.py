"""One restic repository, as the host sees it on which the tree lives: its snapshots, and what is done with them.

Everything that only reads takes no lock (`--no-lock`): a lock that a killed prune left must not stop a restore, and a
repository under object lock takes none. A prune that goes on meanwhile writes what snapshots need into new pieces, and
removes the old ones: what is then missing is looked for once more, by the new index.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from salvor import clock, secrets
from salvor.change import Progress
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.files import locations, watching
from salvor.files.census import Count
from salvor.files.said import (
    INCOMPLETE,
    LOCKED,
    LOST,
    MISSING,
    TAG,
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
    status_of,
    vanished,
)
from salvor.files.watching import Watch
from salvor.shell import Result, Shell

ANSWERING = 20.0
"""Seconds that a repository has to answer a question: restic itself goes on trying for 15 minutes."""
_READERS = 5
"""How many pieces are read at once: by restic's default from any storage but a disk, of which it reads 2. With 5 a
restore of 2 GB took 0.9 of the time, on a disk and in memory (65,552 files, 2 cores).
"""
_READING = 3600.0
_DAY = 24 * 3600.0
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
    def _secrets(self) -> dict[str, str]:
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
    def _growth(self) -> str:
        """What `_LESS_GARBAGE` takes; empty for a version that knows no limit."""
        return "400" if self.version >= (0, 14) else ""

    def argv(self, *arguments: str) -> list[str]:
        """A restic command for this repository."""
        return ["restic", "--repo", self.location, *locations.options(self.login), *arguments]

    def run(self, argv: Sequence[str], *, deadline: float, hear: Callable[[str], None] | None = None) -> Result:
        """Run `argv` with what the storage asks for in its environment. `hear`, and what it raises: as `Shell.run`."""
        return self.shell.run(argv, environment=self._secrets, deadline=deadline, hear=hear)

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
        command = ["sh", "-c", f'{_LESS_GARBAGE}exec "$@"', "sh", self._growth, *argv]
        rest = b""
        try:
            for piece in self.shell.pieces(command, deadline=_READING, environment=self._secrets, hear=self._hear):
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
            pieces = self.shell.pieces(argv, deadline=_READING, environment=self._secrets, hear=self._hear)
            said = b"".join(pieces)
        except CommandError as error:
            raise self.explained(error.stderr, argv) from error
        links = [as_json(_HEAD.sub(b"", one.removesuffix(b"\n"))) for one in _RECORD.split(said) if one[:1] == b"L"]
        return [one for one in links if one.startswith((f"{path} -> ", f"{path}/"))]

    def restored_size(self, snapshot: str) -> tuple[int, int]:
        """Bytes and entries of a snapshot as they would be restored, each hard linked file once. Reads the whole
        tree of the snapshot, which takes seconds for a million files. Raises as `ask`.
        """
        said = json.loads(self.ask("stats", "--mode", "restore-size", snapshot, deadline=_READING))
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
            self.run(argv, deadline=_DAY if deep else _READING, hear=hear)
        except CommandError as error:
            if "repository contains errors" not in error.stderr:
                raise self.explained(error.stderr, argv) from error
            raise damaged(error.stderr) from error

    # --- restore -------------------------------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot, path: str, target: str) -> Generator[Progress, None, int]:
        """Restore `path` of a snapshot below `target`, then let restic read every file back and compare it with the
        checksums of its pieces; returns how many files that were.

        Raises DamagedError (MissingError: look once more), CannotError when the disk is full or the repository was
        lost, OutcomeUnknownError.
        """
        # Comparing each name with --include takes 4 % of the time. Without it the folders above the tree would be
        # restored too, with attributes that the tree's own file system may refuse.
        arguments = ["restore", snapshot.id, "--target", target, "--include", _pattern(path), "--verify", "--no-lock"]
        if self.version >= (0, 15):
            arguments.append("--sparse")
        if self.version >= (0, 16):
            arguments.append("--json")
        if self.location.startswith("/") and self.version >= (0, 14):
            arguments += ["-o", f"local.connections={_READERS}"]
        argv = self.argv(*arguments)
        watch = Watch(self, snapshot, target)
        command = ["sh", "-c", _WATCHED, target, self._growth, " ".join(self._secrets), *argv]
        yield Progress(0, snapshot.size, "bytes", watch.label)
        try:
            for line in self.shell.stream(command, deadline=_DAY, environment=self._secrets):
                if progress := watch.hear(line):
                    yield progress
        except CommandError as error:
            raise self.explained("\n".join(watch.said) or error.stderr, argv) from error
        if watch.verified < 0 and self.version < (0, 16):  # newer ones do not say how many they were
            raise CannotError(
                f"restic restored {watch.label}, and did not say that it read the files back.",
                safe="what is live is as it was",
                hint=f"by hand, {self.shell.by_hand(argv)}",
            )
        if snapshot.sparse and self.version < (0, 15):
            self.shell.run(["sh", "-c", _DIG, "sh", target], deadline=_READING)
        return watch.verified

    def lost(self, said: str) -> CannotError:
        return CannotError(
            f"The {self.title} was lost midway: {secrets.mask(said)[:300]}",
            safe="what is live is as it was",
            hint="run the same command again when it answers",
        )

    # --- back up -------------------------------------------------------------------------------------------------

    def back_up(self, path: str, owner: str, taken: datetime, contents: Count) -> Generator[Progress, None, str]:
        """Back `path` up as a backup of the system `owner`; `taken` is the same for all repositories of one run.
        Returns the snapshot's id.

        Raises CannotError; also when something could not be read: the snapshot is then marked as not whole.
        """
        tags = [f"{TAG}{owner}", f"bytes:{contents.size}", f"files:{contents.entries}"]
        tags += ["sparse"] if contents.sparse else []
        argv = self.argv(
            "backup", "--json", "--tag", ",".join(tags), "--time", f"{taken:%Y-%m-%d %H:%M:%S.%f}", "--", path
        )
        try:
            return (yield from self._back_up(argv))
        except CannotError as error:
            if LOCKED not in error.what:
                raise
        self._unlock()
        return (yield from self._back_up(argv))

    def _unlock(self) -> None:
        """Remove the locks whose process is gone, or that are older than half an hour: restic removes no others."""
        self.run(self.argv("unlock"), deadline=_READING)

    def forget(self, snapshots: Sequence[str]) -> None:
        """Remove snapshots, by their ids, and what only they needed. Those that are gone already are passed over."""
        known = {one.id for one in self.snapshots()}
        gone = [one for one in snapshots if any(each.startswith(one) for each in known)]
        argv = self.argv("forget", "--prune", "--", *gone)
        for attempt in range(2 if gone else 0):
            try:
                self._forget(argv)
                return
            except CannotError as error:
                if LOCKED not in error.what or attempt:
                    raise
            self._unlock()

    def _forget(self, argv: Sequence[str]) -> None:
        """Restic itself would try each file for a quarter of an hour that may not be removed."""
        said, trouble = list[str](), 0.0
        command = ["sh", "-c", 'exec "$0" "$@" 2>&1', *argv]
        try:
            for line in self.shell.stream(command, deadline=_DAY, environment=self._secrets):
                said = [*said[-20:], line]
                if not LOST.search(line):
                    trouble = 0.0
                    continue
                trouble = trouble or clock.monotonic()
                if clock.monotonic() - trouble > watching.PATIENCE:
                    raise CannotError(
                        f"The {self.title} lets nothing be removed: {secrets.mask(line)[:300]}",
                        safe="the backups that the policy keeps",
                        hint="see whether it answers, and whether its key may delete; then the same command again",
                    )
        except CommandError as error:
            raise self.explained("\n".join(said) or error.stderr, argv) from error

    def _back_up(self, argv: Sequence[str]) -> Generator[Progress, None, str]:
        made, unread, said = "", list[str](), list[str]()
        most, moved = -1, clock.monotonic()
        command = ["sh", "-c", 'exec env TZ=UTC "$0" "$@" 2>&1', *argv]
        try:
            for line in self.shell.stream(command, deadline=_DAY, environment=self._secrets):
                status = status_of(line)
                match status.get("message_type"):
                    case "status":
                        done = int(status.get("bytes_done", 0))
                        if done > most:
                            most, moved = done, clock.monotonic()
                        elif clock.monotonic() - moved > watching.SILENCE:
                            raise self.lost(f"it took nothing for {clock.write_duration(watching.SILENCE)}")
                        yield Progress(done, status.get("total_bytes"), "bytes", f"to {self.name}")
                    case "summary":
                        made = str(status["snapshot_id"])
                        size = int(status["total_bytes_processed"])  # a quick backup says no status before its end
                        yield Progress(size, size, "bytes", f"to {self.name}")
                    case "error" if not vanished(status):
                        unread.append(str(status.get("item")))
                    case "exit_error":  # restic 0.17 and newer
                        said.append(str(status.get("message")))
                    case None if line.strip() and not is_trace(line):
                        said = [*said[-20:], line]
        except CommandError as error:
            if error.exit_code_of_command != 3:  # 3: a snapshot was made, and something could not be read
                raise self.explained("\n".join(said) or error.stderr, argv) from error
        if unread:
            # It complains as much of a file that it stores again, because the repository lost what it held of it.
            there = watching.once_more(lambda: {node["path"] for node in self.listing(made)})
            unread = [item for item in unread if item not in there]
        if unread:
            self.run(self.argv("tag", "--add", INCOMPLETE, made), deadline=_READING)
            raise CannotError(
                f"{len(unread)} of what {self.name} was to get could not be read, first {unread[0]!r}.",
                safe=f"the snapshot {made} is marked as not whole",
                hint=f"see who may read it on {self.shell.where}: run_as, or its mode",
            )
        return made

    # --- errors --------------------------------------------------------------------------------------------------

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
_LESS_GARBAGE = r"""
free=$(awk '$1 == "MemAvailable:" { print int($2 / 3) }' /proc/meminfo 2>/dev/null)
[ "$1" ] && [ "$free" ] && export GOGC="${GOGC:-$1}" GOMEMLIMIT="${GOMEMLIMIT:-${free}KiB}"
shift
"""

# What is written, by the count of the file system, for versions that say nothing of their progress: up to 0.15.
_WATCHED = (
    _LESS_GARBAGE
    + r"""
secrets=$1
shift
(
    unset $secrets
    while sleep 1 >&-; do stat -f -c 'salvor-disk %b %f %S' -- "$0" || exit; done 2>/dev/null
) &
watch=$!
"$@" 2>&1
code=$?
kill "$watch"
exit "$code"
"""
)

# Making holes counts as a change of the file.
_DIG = r"""
find "$1" -type f -size +1M -exec sh -c '
    for file; do
        time=$(stat -c %y -- "$file")
        fallocate --dig-holes -- "$file" && touch -m -d "$time" -- "$file"
    done' sh {} +
"""


def _pattern(path: str) -> str:
    """A path as a pattern that only it matches (Go's filepath.Match)."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)
