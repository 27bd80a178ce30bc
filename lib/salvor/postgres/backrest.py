"""What a pgBackRest repository holds, asked of pgBackRest itself."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from salvor import clock, secrets
from salvor.change import Backup
from salvor.errors import CannotError, OutcomeUnknownError
from salvor.postgres.silent import hear, leaving_out
from salvor.postgres.stored import Elsewhere, Stored
from salvor.postgres.wal import read_lsn, timeline_of
from salvor.postgres.wal_archive import LISTING_SECONDS, WalArchive
from salvor.shell import Shell

NAME = "pgBackRest"
_VERIFY_SECONDS = 24 * 3600.0
_ANSWERING = 30.0  # seconds for a question that reads no more than what is stored there
_READABLE, _NO_STANZA, _MIXED = (0, 2), 1, 4
"""Codes of `info`: sound, or no backup yet; deleted, or not begun; several repositories that differ (info.c)."""


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

    def run(self, *arguments: str, deadline: float) -> str:
        """What a pgBackRest command for this repository prints. Raises CannotError, also when it did not end well, and
        OutcomeUnknownError after `deadline` seconds.
        """
        return self.shell.run(self.argv(*arguments), environment=self.environment, deadline=deadline).stdout

    def _ask(self, *arguments: str, deadline: float | None = None) -> str:
        """What a command that only reads prints. Raises CannotError, also when no answer came in time."""
        deadline = deadline or _ANSWERING
        try:
            return self.run(*arguments, deadline=deadline)
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
            # A wrong passphrase is not called one: what it makes of the file is no file of pgBackRest's (FormatError),
            # or, of one in a hundred, cannot be told to its end (CryptoError).
            encrypted = stanza.get("cipher", "none") != "none" and re.search("FormatError|CryptoError", reasons)
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
        said = self._ask("--output=text", "--log-level-file=off", "verify", deadline=_VERIFY_SECONDS)
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


def _first_line(message: str) -> str:
    return secrets.mask(message.splitlines()[0].rstrip(":"))
