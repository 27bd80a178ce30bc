"""pgBackRest: what its repository holds, and the commands that fill it and restore from it."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from salvor import clock, secrets
from salvor.change import Backup, Progress
from salvor.errors import CannotError, CommandError, OutcomeUnknownError
from salvor.postgres.server import Server
from salvor.postgres.silent import hear, leaving_out
from salvor.postgres.wal import read_lsn, timeline_of
from salvor.postgres.wal_archive import LISTING_SECONDS, WalArchive
from salvor.shell import Shell

NAME = "pgBackRest"
_BACKUP_SECONDS = 24 * 3600.0
_RESTORE_SECONDS = 24 * 3600.0
_EXPIRE_SECONDS = 3600.0
_ANSWERING = 30.0  # seconds for a question that reads no more than what is stored there
_READABLE, _NO_STANZA, _MIXED = (0, 2), 1, 4
"""Codes of `info`: sound, or no backup yet; deleted, or not begun; several repositories that differ (info.c)."""
_FILE = re.compile(r"(?:restore|backup) file (?P<name>\S.*?) \((?:.*?, )?(?P<percent>[0-9.]+)%\)")


@dataclass(frozen=True)
class Stored:
    """One backup in the repository. `size` is bytes of the database, `stored` bytes in the repository; `needs` are the
    backups that hold files of it.
    """

    label: str
    kind: str
    stopped: datetime
    timeline: int
    stop_lsn: int
    size: int
    stored: int
    broken: bool
    repository: int
    system_identifier: str
    version: str
    annotations: Mapping[str, str]
    needs: tuple[str, ...] = ()
    wal: tuple[str, str] = ("", "")
    """The first and the last WAL segment that make it consistent."""

    @property
    def consistent_from(self) -> datetime:
        """The earliest time that it can be recovered to. pgBackRest notes whole seconds, rounded down."""
        return self.stopped + timedelta(seconds=1)


@dataclass(frozen=True)
class Elsewhere:
    """What a backup holds that was not in the data directory: tablespaces (object id to path), and links in it (path
    within it to where it led).
    """

    tablespaces: Mapping[str, str]
    links: Mapping[str, str]


@dataclass(frozen=True)
class Repository:
    """The pgBackRest repository of one cluster, as it is used from one machine.

    `environment` holds PGBACKREST_REPO1_CIPHER_PASS when the inventory names a passphrase; it is never in argv.
    """

    shell: Shell
    config: str
    stanza: str
    system: str
    program: str = "pgbackrest"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def argv(self, *arguments: str) -> list[str]:
        """A pgBackRest command for this repository, without those that do not answer."""
        return self._argv(*leaving_out(self.silent), *arguments)

    def _argv(self, *arguments: str) -> list[str]:
        return [self.program, f"--config={self.config}", f"--stanza={self.stanza}", *arguments]

    @cached_property
    def _heard(self) -> tuple[str, tuple[int, ...]]:
        """What `info` says, and the numbers of the repositories that do not answer, which it left out then. Raises
        CannotError, also when none answers.
        """

        def ask(deadline: float, *arguments: str) -> str:
            argv = self._argv("--output=json", *arguments, "info")
            return self.shell.run(argv, environment=self.environment, deadline=deadline).stdout

        try:
            return hear((self.shell.where, self.config, self.stanza), ask, _ANSWERING)
        except OutcomeUnknownError as error:
            raise self._no_answer(_ANSWERING, self._argv("info")) from error

    @property
    def silent(self) -> tuple[int, ...]:
        """The numbers of the repositories that do not answer, while others do."""
        return self._heard[1]

    def _run(self, *arguments: str, deadline: float) -> str:
        """What a pgBackRest command for this repository prints. Raises CannotError, also when it did not end well, and
        OutcomeUnknownError after `deadline` seconds.
        """
        return self.shell.run(self.argv(*arguments), environment=self.environment, deadline=deadline).stdout

    def _ask(self, *arguments: str, deadline: float | None = None) -> str:
        """What a command that only reads prints. Raises CannotError, also when no answer came in time."""
        deadline = deadline or _ANSWERING
        try:
            return self._run(*arguments, deadline=deadline)
        except OutcomeUnknownError as error:
            raise self._no_answer(deadline, self.argv(*arguments)) from error

    def _no_answer(self, deadline: float, argv: Sequence[str]) -> CannotError:
        return CannotError(
            f"The pgBackRest repository of stanza {self.stanza!r} gave no answer within "
            f"{clock.write_duration(deadline)}.",
            safe="nothing was changed",
            hint=f"by hand, {self.shell.by_hand(argv)}",
        )

    def archive_get(self, data: str) -> str:
        """A command for the WAL of a staged server, one segment at a time: of %f to "%p"."""
        return shlex.join(self.argv(f"--pg1-path={data}", "--no-archive-async", "archive-get")) + ' %f "%p"'

    # --- what it holds -------------------------------------------------------------------------------------------

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What `pgbackrest info` says of the stanza. Raises CannotError when the repository cannot be read."""
        found = json.loads(self._heard[0], strict=False)  # its errors have newlines as they are
        stanza: Mapping[str, Any] = found[0] if found else {}
        # Its exit code is 0 for a repository that is not there, cannot be decrypted or holds no such stanza.
        status = stanza.get("status", {"code": 1, "message": "no answer"})
        if status["code"] not in (*_READABLE, _MIXED):
            reasons = "; ".join(map(self._why_unread, stanza.get("repo", ()))) or _first_line(status["message"])
            # A wrong passphrase is not called one: what it makes of the file is no file of pgBackRest's.
            encrypted = stanza.get("cipher", "none") != "none" and "FormatError" in reasons
            passphrase = "see that repo1-cipher-pass is the one it was made with; " if encrypted else ""
            raise CannotError(
                f"pgBackRest cannot read its repository for stanza {self.stanza!r}: {reasons}.",
                safe="nothing was changed",
                hint=self.begun_anew
                if status["code"] == _NO_STANZA
                else f"{passphrase}{self.shell.by_hand(self._argv('info'))}",
            )
        return stanza

    @property
    def numbers(self) -> list[int]:
        """Of the repositories of its configuration, also of those that cannot be read."""
        return [one["key"] for one in self.info["repo"]]

    def lacking(self, system_identifier: str) -> dict[int, str]:
        """The repositories without a sound backup of that cluster (empty: of any), and what mends each."""
        of_it = [one for one in self.stored if system_identifier in ("", one.system_identifier) and not one.broken]
        codes = {one["key"]: one["status"]["code"] for one in self.info["repo"]}
        without = codes.keys() - {one.repository for one in of_it} - self.unread.keys()
        return {key: self.begun_anew if codes[key] == _NO_STANZA else "inv backup" for key in sorted(without)}

    @property
    def unbegun(self) -> list[int]:
        """The repositories without the stanza: while there is one, the archiver fails, and with it every backup."""
        without = [one["key"] for one in self.info["repo"] if one["status"]["code"] == _NO_STANZA]
        return [number for number in without if number not in self.silent]

    @property
    def unread(self) -> dict[int, str]:
        """The repositories that cannot be read, and why; what they hold is not known."""
        known = (*_READABLE, _NO_STANZA)
        unread = [one for one in self.info["repo"] if one["status"]["code"] not in known or one["key"] in self.silent]
        return {one["key"]: self._why_unread(one) for one in unread}

    def _why_unread(self, one: Mapping[str, Any]) -> str:
        return "no answer" if one["key"] in self.silent else _first_line(one["status"]["message"])

    @property
    def begun_anew(self) -> str:
        """What mends a repository that lacks its stanza."""
        create = self.shell.by_hand(self._argv("stanza-create"))
        return f"see that its disk is mounted; if it was lost, {create}; then inv backup"

    @cached_property
    def stored(self) -> list[Stored]:
        """Its backups, newest first."""
        databases = {(one["repo-key"], one["id"]): one for one in self.info.get("db", ())}
        found = []
        for one in self.info.get("backup", ()):
            database = databases[one["database"]["repo-key"], one["database"]["id"]]
            found.append(
                Stored(
                    label=one["label"],
                    kind=one["type"],
                    stopped=datetime.fromtimestamp(one["timestamp"]["stop"], UTC),
                    timeline=timeline_of(one["archive"]["start"]),
                    stop_lsn=read_lsn(one["lsn"]["stop"]),
                    size=one["info"]["size"],
                    stored=one["info"]["repository"]["delta"],
                    broken=bool(one.get("error")),
                    repository=one["database"]["repo-key"],
                    system_identifier=str(database["system-id"]),
                    version=database["version"],
                    annotations=one.get("annotation") or {},
                    needs=tuple(one.get("reference") or ()),
                    wal=(one["archive"]["start"], one["archive"]["stop"]),
                )
            )
        return sorted(found, key=lambda one: one.stopped, reverse=True)

    def backup(self, label: str) -> Stored:
        """The backup of that label. Raises CannotError, naming the newest ones."""
        for one in self.stored:
            if one.label == label:
                return one
        newest = ", ".join(one.label for one in self.stored[:3]) or "none"
        raise CannotError(f"There is no backup {label!r} in the repository any more.", hint=f"the newest are: {newest}")

    @cached_property
    def archive(self) -> WalArchive:
        """The WAL of the cluster's current version, in each repository that holds some."""
        clusters = {(one["repo-key"], one["id"]): (one["system-id"], one["version"]) for one in self.info.get("db", ())}
        held = [(one["database"]["id"], one["database"]["repo-key"], one["id"]) for one in self.info.get("archive", ())]
        newest = max(held, default=None)
        mine = {
            number: f"archive/{self.stanza}/{name}"
            for id, number, name in held
            if newest and clusters[number, id] == clusters[newest[1], newest[0]]
        }
        return WalArchive(mine, self._ask)

    def leads_on(self, one: Stored) -> bool:
        """Whether the WAL after a backup is there without a gap; if not, it leads to its own moment only."""
        return one.wal[1] >= self.archive.unbroken.get(one.timeline, "G")

    def incomplete(self) -> Iterator[tuple[Stored, int]]:
        """The backups that take less room than was written, and how much (bytes): their folder or a file of it is gone,
        or was cut off. `info` does not look, and `verify` misses a whole folder.
        """
        for number in {one.repository for one in self.stored}:
            taken: dict[str, int] = defaultdict(int)
            for name, size in self._sizes(f"backup/{self.stanza}", number).items():
                label, _, path = name.partition("/")
                if not path.startswith("backup.manifest"):
                    taken[label] += size
            # Where it makes hard links to what earlier backups hold, it takes more than it needed to write.
            yield from (
                (one, taken[one.label])
                for one in self.stored
                if one.repository == number and taken[one.label] < one.stored
            )

    def _sizes(self, path: str, number: int) -> dict[str, int]:
        """The size in bytes of every file below a path of a repository, by its path there."""
        arguments = ("--output=json", "--recurse", "repo-ls", path, f"--repo={number}")
        listed = json.loads(self._ask(*arguments, deadline=LISTING_SECONDS))
        return {name: one["size"] for name, one in listed.items() if one["type"] == "file"}

    def verify(self) -> list[str]:
        """What `pgbackrest verify` finds damaged: it reads every file of every backup, and all WAL. Its exit code is 0
        whatever it finds.
        """
        said = self._ask("--output=text", "--log-level-file=off", "verify", deadline=_BACKUP_SECONDS)
        if "status: error" not in said:
            return []
        return [" ".join(one.split()) for one in re.split(r"^  (?=\S)", said, flags=re.MULTILINE)[1:]] or [said.strip()]

    def elsewhere(self, label: str) -> Elsewhere:
        """What a backup holds that was not in the data directory."""
        found = json.loads(self._ask(f"--set={label}", "--output=json", "info"))[0]["backup"][0]
        return Elsewhere(
            tablespaces={str(one["oid"]): one["destination"] for one in found.get("tablespace") or ()},
            links={one["name"]: one["destination"] for one in found.get("link") or ()},
        )

    def backups(self) -> list[Backup]:
        """Its backups as restorable points, newest first."""
        until = self.archive.newest

        def detail(one: Stored) -> str:
            if one.broken:
                return "pgBackRest found damaged pages while it was taken"
            before = f"of a cluster before this one, system identifier {one.system_identifier}"
            return "" if self.is_of(one.system_identifier) else before

        return [
            Backup(
                id=one.label,
                system=self.system,
                way="physical",
                kind=one.kind,
                taken=one.stopped,
                size=one.stored,
                location=f"pgBackRest repository {one.repository}, stanza {self.stanza}",
                window=(one.consistent_from, until)
                if until and until > one.consistent_from and self.is_of(one.system_identifier) and self.leads_on(one)
                else None,
                fingerprint=json.loads(one.annotations["fingerprint"]) if "fingerprint" in one.annotations else None,
                usable=not one.broken,
                detail=detail(one),
                content=one.size,
                repository=f"{NAME} {one.repository}",
                needs=one.needs,
            )
            for one in self.stored
        ]

    def is_of(self, system_identifier: str) -> bool:
        """Whether it takes the WAL and the backups of that cluster; of any other it refuses both."""
        newest = {one["repo-key"]: str(one["system-id"]) for one in sorted(self.info["db"], key=lambda one: one["id"])}
        return set(newest.values()) == {system_identifier}

    # --- what it does --------------------------------------------------------------------------------------------

    def take(
        self, kind: str, number: int, server: Server, socket_folder: str, *, keeps_all: bool
    ) -> Iterator[Progress]:
        """Take a backup (full, diff or incr) of the server to repository `number`: pgBackRest itself would take the
        first one alone. `keeps_all`: and let it remove none for it.
        """
        if number in self.silent:
            raise CannotError(f"{NAME} {number} was not asked for a backup: {self.unread[number]}.")
        options = [f"--repo={number}", f"--type={kind}", "--log-level-console=detail", "--log-level-file=off"]
        if keeps_all:
            options.append("--no-expire-auto")  # else its own repo-retention-full removes what our policy keeps
        argv = self.argv(*_place(server, socket_folder), *options, "backup")
        yield from self._follow(argv, _BACKUP_SECONDS, None, f"backing up ({kind})")

    def adopt(self, server: Server, socket_folder: str) -> None:
        """Take this cluster's WAL and backups from now on. Those of the cluster before it stay restorable."""
        self._run(*_place(server, socket_folder), "--log-level-file=off", "stanza-upgrade", deadline=120.0)

    def annotate(self, label: str, annotations: Mapping[str, str]) -> None:
        """Note something with a backup; what was noted by the same names is replaced."""
        noted = [f"--annotation={name}={value}" for name, value in annotations.items()]
        where = (f"--repo={self.backup(label).repository}", f"--set={label}")
        self._run(*where, "--log-level-file=off", *noted, "annotate", deadline=60.0)

    def expire(self, number: int, labels: Sequence[str], wal_since: str) -> Iterator[Progress]:
        """Remove backups from repository `number`, and the WAL that leads to no moment any more: of what is older than
        the full backup `wal_since`, each backup keeps only the WAL that makes it consistent.

        Raises CannotError when one that stays needs one of them: pgBackRest would remove it too, without a word.
        """
        stored = [one for one in self.stored if one.repository == number]
        doomed = [one for one in stored if one.label in labels]
        for one in stored:
            if one.label not in labels and (lost := set(one.needs) & {each.label for each in doomed}):
                raise CannotError(
                    f"{one.label} needs {', '.join(sorted(lost))}, which would be removed.",
                    safe="nothing was removed",
                    hint="the same command again looks anew",
                )
        since = next((one.stopped for one in stored if one.label == wal_since), stored[-1].stopped if stored else None)
        fulls = [one for one in stored if one.kind == "full"]
        for count, one in enumerate(doomed):  # the newest first: nothing that is left needs it
            yield Progress(count, len(doomed), "backups", f"removing {one.label}")
            # How many full backups, from the newest on, have all of the WAL since them. Said with each call, because
            # else the configured count decides.
            fulls = [each for each in fulls if each is not one]
            keeps = max(1, sum(1 for each in fulls if since and each.stopped >= since))
            wal = [f"--repo{number}-retention-archive={keeps}", f"--repo{number}-retention-archive-type=full"]
            arguments = (f"--repo={number}", f"--set={one.label}", "--log-level-file=off", *wal, "expire")
            self._run(*arguments, deadline=_EXPIRE_SECONDS)
        yield Progress(len(doomed), len(doomed), "backups", "removed")

    def restore(
        self, label: str, data: str, *, incident: str, target: list[str], tablespaces: Mapping[str, str], resume: bool
    ) -> Iterator[Progress]:
        """Restore a backup into `data`, the stage of an incident. `target`: pgBackRest's recovery options; `resume`: go
        on with what is there.
        """
        mapping = [f"--tablespace-map={name}={path}" for name, path in tablespaces.items()]
        argv = self.argv(
            f"--pg1-path={data}",
            f"--set={label}",
            f"--process-max={self.shell.cores()}",
            "--log-level-console=detail",
            "--log-level-file=off",
            *target,
            *mapping,
            *(["--delta"] if resume else []),
            "restore",
        )
        try:
            yield from self._follow(argv, _RESTORE_SECONDS, self.backup(label).size, f"restoring {label}")
        except CommandError as error:
            wrong = next((line for line in error.stderr.splitlines() if "ERROR:" in line), error.stderr.strip())
            raise CannotError(
                f"Backup {label} cannot be restored: {wrong.partition('ERROR: ')[2] or wrong}",
                safe="what is live was not touched; what was copied so far stays beside it",
                hint="the same command tries again where it stopped; another backup instead (inv backups lists them): "
                f"inv undo --incident={incident}, then inv restore --from=ID. What is damaged: "
                f"{self.shell.by_hand(self.argv(f'--set={label}', '--output=text', '--verbose', 'verify'))}",
            ) from error

    def _follow(self, argv: list[str], deadline: float, total: int | None, label: str) -> Iterator[Progress]:
        """Run it, and make progress of the percentages that it logs for each file."""
        shown = 0.0
        for line in self.shell.stream(argv, deadline=deadline, environment=self.environment):
            found = _FILE.search(line)
            if found and clock.monotonic() - shown > 0.2:
                shown = clock.monotonic()
                percent = float(found["percent"])
                if total is None:
                    yield Progress(round(percent), 100, "%", label)
                else:
                    yield Progress(round(total * percent / 100), total, "bytes", label)


def _place(server: Server, socket_folder: str) -> list[str]:
    return [f"--pg1-path={server.data}", f"--pg1-port={server.port}", f"--pg1-socket-path={socket_folder}"]


def _first_line(message: str) -> str:
    return secrets.mask(message.splitlines()[0].rstrip(":"))


def write_target_time(moment: datetime) -> str:
    """A time as PostgreSQL's recovery_target_time reads it, whatever the server's time zone is."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00"


def recovery_options(target: str, timeline: int, begins_on: int) -> list[str]:
    """pgBackRest's options for `latest`, `immediate`, `time:...`, `before:...` (exclusive), `name:...`, `lsn:...`, or
    `before-lsn:...` (exclusive), from a backup of the timeline `begins_on`.

    Named by its number a timeline needs its history file, which a repository that was begun anew does not have.
    """
    kind, _, value = target.partition(":")
    along = f"--target-timeline={'current' if timeline == begins_on else timeline}"
    match kind:
        case "latest":
            return ["--type=standby", along]
        case "immediate":
            return ["--type=immediate", "--target-action=pause"]
        case "time" | "before":
            moment = write_target_time(clock.read_time(value, argument="--at"))
            exclusive = ["--target-exclusive"] if kind == "before" else []
            return ["--type=time", f"--target={moment}", *exclusive, "--target-action=pause", along]
        case "before-lsn":
            return ["--type=lsn", f"--target={value}", "--target-exclusive", "--target-action=pause", along]
        case _:
            return [f"--type={kind}", f"--target={value}", "--target-action=pause", along]
