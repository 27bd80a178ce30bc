"""One restic repository, as the host sees it on which the tree lives: its snapshots, and what is done with them.

Everything that only reads takes no lock (`--no-lock`): a lock that a killed prune left must not stop a restore, and a
repository under object lock takes none. What prune removes is what no snapshot needs, so ours cannot miss it.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from salvor import clock, secrets
from salvor.change import Progress
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.files import locations
from salvor.files.census import Count
from salvor.shell import Shell

ANSWERING = 20.0
"""Seconds that a repository has to answer a question: restic itself goes on trying for 15 minutes."""
_READING = 3600.0
_DAY = 24 * 3600.0
_PATIENCE = 60.0  # seconds of nothing but errors until a repository that was lost midway is given up
_SILENCE = 600.0  # seconds in which nothing arrives
_making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""Who makes a repository at a location."""
_TAG = "salvor:"
_LOCKED = "repository is already locked"
_NOTHING = "Is there a repository at the following location"
_INCOMPLETE = "salvor-incomplete"
_VERSION = re.compile(r"restic (\d+)\.(\d+)")
_HEAD = re.compile(rb"^[-a-zA-Z]{10,13} +\d+ +\d+ +\d+ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?=/)", re.MULTILINE)
_RECORD = re.compile(rb"(?=" + _HEAD.pattern + rb")", re.MULTILINE)
_LOST = re.compile(r"returned error, retrying|connection refused|i/o timeout|no such host|connection reset")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a repository. `size` in bytes and `files` are what a restore brings back; None: not known.

    `owner` is the system whose backup it is, by its tag; empty when somebody else made it. `sparse`: it has files with
    holes. `whole` is False when restic could not read all that it was to back up.
    """

    repository: str
    id: str
    taken: datetime
    tree: str
    paths: tuple[str, ...]
    hostname: str
    owner: str = ""
    size: int | None = None
    files: int | None = None
    sparse: bool = False
    whole: bool = True

    @property
    def short(self) -> str:
        """The id as people write it."""
        return self.id[:8]

    def holds(self, path: str) -> bool:
        """Whether `path`, or a folder that it lies in, was backed up."""
        return any(path == one or path.startswith(f"{one.rstrip('/')}/") for one in self.paths)


class DamagedError(CannotError):
    """What the repository holds cannot be read back as it was written."""


class DiskFullError(CannotError):
    """There is no room for what is restored."""


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

    @cached_property
    def _secrets(self) -> dict[str, str]:
        return {**locations.resolved(self.environment), "RESTIC_PASSWORD": secrets.resolve(self.password)}

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

    def argv(self, *arguments: str) -> list[str]:
        """A restic command for this repository."""
        return ["restic", "--repo", self.location, *locations.options(self.login), *arguments]

    def ask(self, *arguments: str, deadline: float | None = None) -> str:
        """What a command that only reads prints. Raises CannotError, also when no answer came in time."""
        assert self.version
        deadline = deadline or ANSWERING
        argv = self.argv(*arguments, "--no-lock", "--json")
        try:
            return self.shell.run(argv, environment=self._secrets, deadline=deadline).stdout
        except CommandError as error:
            raise self.explained(error.stderr, argv) from error
        except OutcomeUnknownError as error:
            raise CannotError(
                f"The repository {self.name} ({self.location}) gave no answer within {clock.write_duration(deadline)}.",
                hint=f"by hand, on {self.shell.where}: {shlex.join(argv)}",
            ) from error

    # --- what it holds -------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots of everything, newest first."""
        found = [_snapshot(self.name, one) for one in json.loads(self.ask("snapshots")) or ()]
        return sorted(found, key=lambda one: one.taken, reverse=True)

    def listing(self, snapshot: str) -> Iterator[dict[str, Any]]:
        """Every node of a snapshot, parents before what is in them, as `restic ls --json` says it: name, type, path,
        uid, gid, size, mode (the bits of Go's os.FileMode), mtime. Names that are no UTF-8 have U+FFFD for each byte.
        """
        argv = self.argv("ls", "--no-lock", "--json", snapshot)
        rest = b""
        try:
            for piece in self.shell.pieces(argv, deadline=_READING, environment=self._secrets):
                *lines, rest = (rest + piece).split(b"\n")
                several = b",".join(filter(None, lines)).decode()  # one by one, a million entries would take long
                yield from (one for one in json.loads(f"[{several}]") if one.get("struct_type") == "node")
        except CommandError as error:
            raise self.explained(error.stderr, argv) from error

    def links(self, snapshot: str, path: str) -> list[str]:
        """The symbolic links of a snapshot at or below `path`, as `PATH -> TARGET`, in the order of `listing`, with
        U+FFFD for each byte that is no UTF-8. Only restic's listing for people says where links lead; a name may hold
        an arrow, so only the other listing says where it ends.
        """
        argv = self.argv("ls", "--no-lock", "--long", snapshot)
        said = b"".join(self.shell.pieces(argv, deadline=_READING, environment=self._secrets))
        links = [as_json(_HEAD.sub(b"", one.removesuffix(b"\n"))) for one in _RECORD.split(said) if one[:1] == b"L"]
        return [one for one in links if one.startswith((f"{path} -> ", f"{path}/"))]

    def restored_size(self, snapshot: str) -> tuple[int, int]:
        """Bytes and entries of a snapshot as they would be restored, each hard linked file once. Reads the whole
        tree of the snapshot, which takes seconds for a million files.
        """
        said = json.loads(self.ask("stats", "--mode", "restore-size", snapshot, deadline=_READING))
        return int(said["total_size"]), int(said["total_file_count"])

    def check(self, *, deep: bool) -> None:
        """Let restic check its structure, which reads every folder of every snapshot; `deep`: every byte of the files
        too. Raises DamagedError, and CannotError when it cannot be asked.
        """
        assert self.version
        self.ask("cat", "config")  # one that says nothing would keep the check waiting
        argv = self.argv("check", "--no-lock", *(["--read-data"] if deep else []))
        try:
            self.shell.run(argv, environment=self._secrets, deadline=_DAY if deep else _READING)
        except CommandError as error:
            found = self.explained(error.stderr, argv)
            if "repository contains errors" in error.stderr:
                raise DamagedError(found.what, safe="it was only read", hint=found.hint) from error
            raise found from error

    # --- restore -------------------------------------------------------------------------------------------------

    def restore(self, snapshot: Snapshot, path: str, target: str) -> Generator[Progress, None, int]:
        """Restore `path` of a snapshot below `target`, then let restic read every file back and compare it with the
        checksums of its pieces; returns how many files that were.

        Raises DamagedError, CannotError when the disk is full or the repository was lost, OutcomeUnknownError.
        """
        arguments = ["restore", snapshot.id, "--target", target, "--include", _pattern(path), "--verify", "--no-lock"]
        if self.version >= (0, 15):
            arguments.append("--sparse")
        if self.version >= (0, 16):
            arguments.append("--json")
        argv = self.argv(*arguments)
        watch = _Watch(self, snapshot, target)
        growth = "400" if self.version >= (0, 14) else ""
        command = ["sh", "-c", _WATCHED, target, " ".join(self._secrets), growth, *argv]
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
                hint=f"by hand, on {self.shell.where}: {shlex.join(argv)}",
            )
        if snapshot.sparse and self.version < (0, 15):
            self.shell.run(["sh", "-c", _DIG, "sh", target], deadline=_READING)
        return watch.verified

    def lost(self, said: str) -> CannotError:
        return CannotError(
            f"The repository {self.name} ({self.location}) was lost midway: {secrets.mask(said)[:300]}",
            safe="what is live is as it was",
            hint="run the same command again when it answers",
        )

    # --- back up -------------------------------------------------------------------------------------------------

    def back_up(self, path: str, owner: str, taken: datetime, contents: Count) -> Generator[Progress, None, str]:
        """Back `path` up as a backup of the system `owner`; `taken` is the same for all repositories of one run.
        Makes the repository when there is none. Returns the snapshot's id.

        Raises CannotError; also when something could not be read: the snapshot is then marked as not whole.
        """
        self.make()
        tags = [f"{_TAG}{owner}", f"bytes:{contents.size}", f"files:{contents.entries}"]
        tags += ["sparse"] if contents.sparse else []
        argv = self.argv(
            "backup", "--json", "--tag", ",".join(tags), "--time", f"{taken:%Y-%m-%d %H:%M:%S.%f}", "--", path
        )
        try:
            return (yield from self._back_up(argv))
        except CannotError as error:
            if _LOCKED not in error.what:
                raise
        self._unlock()
        return (yield from self._back_up(argv))

    def _unlock(self) -> None:
        """Remove the locks whose process is gone, or that are older than half an hour: restic removes no others."""
        self.shell.run(self.argv("unlock"), environment=self._secrets, deadline=_READING)

    def forget(self, snapshots: Sequence[str]) -> None:
        """Remove snapshots, by their ids, and what only they needed. Those that are gone already are passed over."""
        known = {one.id for one in self.snapshots()}
        gone = [one for one in snapshots if any(each.startswith(one) for each in known)]
        argv = self.argv("forget", "--prune", "--", *gone)
        for attempt in range(2 if gone else 0):
            try:
                self.shell.run(argv, environment=self._secrets, deadline=_DAY)
                return
            except CommandError as error:
                if _LOCKED not in error.stderr or attempt:
                    raise self.explained(error.stderr, argv) from error
            self._unlock()

    def _back_up(self, argv: Sequence[str]) -> Generator[Progress, None, str]:
        made, unread, said = "", list[str](), list[str]()
        most, moved = -1, clock.monotonic()
        command = ["sh", "-c", 'exec env TZ=UTC "$0" "$@" 2>&1', *argv]
        try:
            for line in self.shell.stream(command, deadline=_DAY, environment=self._secrets):
                status = _status(line)
                match status.get("message_type"):
                    case "status":
                        done = int(status.get("bytes_done", 0))
                        if done > most:
                            most, moved = done, clock.monotonic()
                        elif clock.monotonic() - moved > _SILENCE:
                            raise self.lost(f"it took nothing for {clock.write_duration(_SILENCE)}")
                        yield Progress(done, status.get("total_bytes"), "bytes", f"to {self.name}")
                    case "summary":
                        made = str(status["snapshot_id"])
                        size = int(status["total_bytes_processed"])  # a quick backup says no status before its end
                        yield Progress(size, size, "bytes", f"to {self.name}")
                    case "error" if not _vanished(status):
                        unread.append(str(status.get("item")))
                    case "exit_error":  # restic 0.17 and newer
                        said.append(str(status.get("message")))
                    case None if line.strip():
                        said = [*said[-20:], line]
        except CommandError as error:
            if error.exit_code_of_command != 3:  # 3: a snapshot was made, and something could not be read
                raise self.explained("\n".join(said) or error.stderr, argv) from error
        if unread:
            self.shell.run(self.argv("tag", "--add", _INCOMPLETE, made), environment=self._secrets, deadline=_READING)
            raise CannotError(
                f"{len(unread)} of what {self.name} was to get could not be read, first {unread[0]!r}.",
                safe=f"the snapshot {made} is marked as not whole",
                hint=f"see who may read it on {self.shell.where}: run_as, or its mode",
            )
        return made

    def make(self) -> None:
        """Make the repository, unless there is one. Raises CannotError when it can be neither read nor made."""
        try:
            self.ask("cat", "config")
        except CannotError as error:
            if _NOTHING not in str(error.__cause__) or _REFUSED.search(str(error.__cause__)):
                raise
            with _making[self.location]:
                self._init()

    def _init(self) -> None:
        """Two of restic's `init` at once spoil a repository: each writes its own key, and one the config. So those of
        this process take turns, and on a disk those of all; whoever comes second finds it made.

        A killed one left its key: it is removed first, as of two keys with one password whichever comes first opens.
        Raises CannotError, and where a config was lost DamagedError.
        """
        script = r"""
            umask 077
            mkdir -p -- "$1" && exec 9<"$1" && flock -w 60 9 || exit
            [ -e "$1/config" ] && exit
            [ -z "$(find "$1/data" "$1/snapshots" -type f 2>/dev/null | head -n 1)" ] || exit 46
            rm -f -- "$1"/keys/*
            shift
            exec "$@"
        """
        argv = self.argv("init")
        command = ["sh", "-c", script, "sh", self.location, *argv] if self.location.startswith("/") else argv
        try:
            self.shell.run(command, environment=self._secrets, deadline=120.0)
        except CommandError as failed:
            if failed.exit_code_of_command == 46:
                raise DamagedError(
                    f"Damaged: the repository {self.name} ({self.location}) holds data, and its file `config` is gone.",
                    safe="nothing was changed",
                    hint="copy that file back from wherever it is; without it restic reads nothing here",
                ) from failed
            # restic asks itself first, and refuses where one is: what let us come here is also said of a storage that
            # does not answer.
            if "already" not in failed.stderr:
                raise self.explained(failed.stderr, argv) from failed
            self.ask("cat", "config")

    # --- errors --------------------------------------------------------------------------------------------------

    def explained(self, said: str, argv: Sequence[str]) -> CannotError:
        """What restic's words mean."""
        if self.login and "unable to start the sftp session" in said:  # often without what ssh said: so it is asked
            said += self.shell.run(self.login, deadline=ANSWERING, check=False).stderr
        said = secrets.mask("\n".join(map(_plain, said.strip().splitlines())))
        which = f"the repository {self.name} ({self.location})"
        by_hand = f"by hand, on {self.shell.where}: {shlex.join(argv)}"
        if "wrong password" in said:
            return CannotError(f"The password of {which} is not the right one.", hint="see its setting `password`")
        if "Host key verification failed" in said:
            changed = "IDENTIFICATION HAS CHANGED" in said
            return CannotError(
                f"The host key of {which} {'has changed' if changed else 'is not known'} on {self.shell.where}; "
                "the host was refused.",
                safe="nothing was sent to it",
                hint="ask who runs it which key is its own, then write it in ssh: {host_keys: [...]} of this "
                f"repository, or in known_hosts on {self.shell.where}; {by_hand}",
            )
        if _REFUSED.search(said):
            return CannotError(
                f"The storage of {which} refuses who we say we are: {_last(said)}",
                hint=f"see its environment: (and ssh:) setting; {by_hand}",
            )
        if _NOTHING in said:
            why = said.splitlines()[0].removeprefix("Fatal: ")
            return CannotError(f"There is nothing to read at {which}: {why}.", hint=by_hand)
        if "no space left on device" in said:
            return CannotError(f"The disk of {which}, or of its cache, is full: {_last(said)}", hint=by_hand)
        if any(word in said for word in _DAMAGE):
            return DamagedError(
                f"Damaged: {which} cannot be read back as it was written: {_last(said)}",
                safe="what is live is as it was",
                hint=f"restic check says how much of it; {by_hand}",
            )
        return CannotError(f"restic could not use {which}: {_last(said)}", hint=by_hand)


# What is written, by the count of the file system, for versions that say nothing of their progress: up to 0.15.
# Of a restore's time a tenth goes into collecting garbage; with 0.1 GB more memory it does not, as long as half of what
# is free is enough. Go knows that limit since 1.19, which restic is made with since 0.14.
_WATCHED = r"""
secrets=$1
free=$(awk '$1 == "MemAvailable:" { print int($2 / 2) }' /proc/meminfo 2>/dev/null)
[ "$2" ] && [ "$free" ] && export GOGC="${GOGC:-$2}" GOMEMLIMIT="${GOMEMLIMIT:-${free}KiB}"
shift 2
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

# Making holes counts as a change of the file.
_DIG = r"""
find "$1" -type f -size +1M -exec sh -c '
    for file; do
        time=$(stat -c %y -- "$file")
        fallocate --dig-holes -- "$file" && touch -m -d "$time" -- "$file"
    done' sh {} +
"""


class _Watch:
    """Hears what restic says while it restores."""

    def __init__(self, repository: Repository, snapshot: Snapshot, target: str) -> None:
        self.label = f"{snapshot.short} from {repository.name}"
        self.said: list[str] = []
        self.verified = -1
        self._repository, self._total, self._target = repository, snapshot.size, target
        self._used_first = self._done = -1
        self._trouble = self._heard = clock.monotonic()
        self._in_trouble = self._reads_back = False

    def hear(self, line: str) -> Progress | None:
        """What a line says of the progress. Raises DiskFullError, and CannotError when the repository is lost."""
        if status := _status(line):  # restic 0.16 and newer
            if status["message_type"] in ("error", "exit_error"):
                self._complain(json.dumps(status.get("error") or status.get("message")))
                return None
            return self._moved(int(status.get("bytes_restored", 0)), status.get("total_bytes"))
        if line.startswith("salvor-disk "):
            total, free, block = map(int, line.split()[1:])
            used = (total - free) * block
            self._used_first = used if self._used_first < 0 else self._used_first
            return None if self._reads_back else self._moved(max(0, used - self._used_first), self._total)
        if done := re.match(r"finished verifying (\d+) files", line):
            self.verified = int(done[1])
        elif line.startswith(("restoring ", "verifying ")):
            self._reads_back = line.startswith("verifying ")
            return Progress(0, None, "", f"{line.partition(' ')[0]} {self.label}")
        elif line.strip():
            self._complain(line)
        return None

    def _moved(self, done: int, total: int | None) -> Progress:
        if done > self._done:
            self._done, self._heard, self._in_trouble = done, clock.monotonic(), False
        elif clock.monotonic() - self._heard > _SILENCE:
            raise self._repository.lost(f"nothing came for {clock.write_duration(_SILENCE)}")
        return Progress(min(done, total) if total else done, total, "bytes", self.label)

    def _complain(self, line: str) -> None:
        self.said = [*self.said[-20:], line]
        if "no space left on device" in line or "disk quota exceeded" in line:
            raise _full(self._target, self._repository.shell.where)  # restic itself would try every file
        if _LOST.search(line):
            if not self._in_trouble:
                self._in_trouble, self._trouble = True, clock.monotonic()
            if clock.monotonic() - self._trouble > _PATIENCE:
                raise self._repository.lost(line)


_REFUSED = re.compile(
    r"signature we calculated|Access Key Id you provided|Access ?Denied|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|AuthenticationFailed|AuthorizationFailure|Permission denied \(|could not find default credentials"
    r"|no azure authentication information|error getting credentials|invalid_grant|Server failed to authenticate"
    r"|\b40[13] (Unauthorized|Forbidden)"
)
"""What S3, Azure, GCS, sshd and restic's own server say to wrong credentials."""

_DAMAGE = (
    "ciphertext verification failed",
    "invalid data returned",
    "hash mismatch",
    "There were ",
    "does not match",
    "not found in index",
    "unable to load",
    "unexpected EOF",
    "file does not exist",
    "invalid header",
    "no such file or directory",
    "Invalid content",
)


def as_json(name: bytes) -> str:
    """A name as Go's JSON has it: each byte that is no UTF-8 is U+FFFD."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return re.sub("[\udc80-\udcff]", "\ufffd", name.decode("utf-8", "surrogateescape"))


def _plain(line: str) -> str:
    """A line for people: restic 0.17 and newer say with --json also errors as JSON."""
    status = _status(line)
    error = status.get("error")
    return str(status.get("message") or (error.get("message") if isinstance(error, dict) else error) or line)


def _last(said: str) -> str:
    return " / ".join(said.splitlines()[-3:])[:600]


def _status(line: str) -> dict[str, Any]:
    if not line.startswith('{"message_type"'):
        return {}
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _vanished(status: Mapping[str, Any]) -> bool:
    """Whether something was removed while it was backed up, which a live tree's files are."""
    error = status.get("error")
    number = error.get("Err") if isinstance(error, dict) else None
    return number == 2 or "no such file or directory" in str(error)


def _full(target: str, where: str) -> DiskFullError:
    return DiskFullError(
        f"The disk of {target} on {where} is full.",
        safe="what is live is as it was",
        hint=f"make room there (inv discard removes what earlier incidents kept; on {where}: df -h, df -i), "
        "then run the same command again",
    )


def _pattern(path: str) -> str:
    """A path as a pattern that only it matches (Go's filepath.Match)."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def _snapshot(repository: str, said: Mapping[str, Any]) -> Snapshot:
    tags = [str(tag) for tag in said.get("tags") or ()]
    figures = {name: int(value) for name, _, value in (tag.partition(":") for tag in tags) if value.isdigit()}
    summary = said.get("summary") or {}  # restic 0.17 and newer
    return Snapshot(
        repository=repository,
        id=said["id"],
        taken=datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", said["time"])).astimezone(UTC),
        tree=said.get("tree", ""),
        paths=tuple(said.get("paths") or ()),
        hostname=said.get("hostname", ""),
        owner=next((tag.removeprefix(_TAG) for tag in tags if tag.startswith(_TAG)), ""),
        size=figures.get("bytes", summary.get("total_bytes_processed")),
        files=figures.get("files", summary.get("total_files_processed")),
        sparse="sparse" in tags,
        whole=_INCOMPLETE not in tags,
    )
