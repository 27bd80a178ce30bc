"""An approval as bytes: one JSON object that holds the text of what was approved, and its SSH signature or none.

It comes from another person, maybe from another machine, so nothing in it is believed before it is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from salvor import clock
from salvor.change import canonical
from salvor.errors import CannotError, CommandError, NotConvergedError, UsageError
from salvor.journal import ssh_signature
from salvor.plain import one_line

NAMESPACE = "salvor-approval"
MOST_BYTES = 256 * 1024
"""Of one approval: a plan of some 10,000 changes."""
NAME = re.compile(r"([0-9a-f]{12})-([0-9a-f]{16})\.json")

_Short = Annotated[str, Field(min_length=1, max_length=200)]
_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Paper(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    approval: str
    signature: Annotated[str, Field(max_length=16 * 1024)] = ""


class Approval(BaseModel):
    """`who` approves the changes with these keys, which are the plan with this hash, of this incident.

    `at` and `where` are what their machine says. Nothing of it is checked yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    incident: _Short
    hash: _Short
    changes: Annotated[list[_Key], Field(min_length=1)]
    who: _Short
    at: _Short
    where: _Short


class NotApprovedError(Exception):
    """A paper that approves nothing; its text says why, as the end of a sentence."""


@dataclass(frozen=True)
class Checked:
    """An approval that holds. `who` is the principal whose key signed it, where allowed signers are named, else the
    name that it says; `key` is the fingerprint of the key that signed it (empty: nobody did), `public` that key.
    """

    said: Approval
    who: str
    key: str = ""
    public: bytes = b""

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the changes that were approved."""
        return frozenset(self.said.changes)


def hash_of(keys: Iterable[str]) -> str:
    """The hash of the plan whose changes have these keys, in their order."""
    return hashlib.sha256(canonical(list(keys)).encode()).hexdigest()[:12]


def write(incident: str, keys: Sequence[str], who: str, key: Path | None) -> tuple[str, bytes]:
    """An approval by `who`, signed with the SSH key in the file `key` if there is one: its name, and its bytes.

    Raises CannotError when the key cannot sign.
    """
    via = os.environ.get("SSH_CONNECTION", "").split(" ")[0]
    where = one_line(socket.gethostname() + (f", over SSH from {via}" if via else ""))
    said = Approval(
        incident=incident,
        hash=hash_of(keys),
        changes=list(keys),
        who=one_line(who),
        at=clock.write_time(clock.now()),
        where=where,
    )
    text = said.model_dump_json()
    signature = ""
    if key:
        try:
            signature = ssh_signature.sign(text.encode(), key, NAMESPACE)
        except (CannotError, NotConvergedError) as error:
            told = error.stderr.strip().splitlines()[-1:] if isinstance(error, CommandError) else [error.what]
            raise CannotError(
                f"The approval could not be signed with {key}: {''.join(told)}",
                safe="nothing was approved",
                hint=f"ssh-add {key}, then the same command again",
            ) from error
    content = (json.dumps({"approval": text, "signature": signature}) + "\n").encode()
    return _name(said.hash, content), content


def check(name: str, content: bytes, incident: str, signers: Path | None) -> Checked:
    """The approval in `content`, which is kept under `name`. Raises NotApprovedError when it is not whole, is not of
    this incident, its signature does not fit, or it is not signed by one of `signers` (a file; None: no signature is
    asked for).
    """
    try:
        paper = _Paper.model_validate_json(content)
        said = Approval.model_validate_json(paper.approval)
        clock.read_time(said.at)
    except (ValidationError, UsageError, RecursionError) as error:
        raise NotApprovedError("it is not an approval, or was damaged") from error
    if _name(said.hash, content) != name or said.hash != hash_of(said.changes):
        raise NotApprovedError("it is not what its name says: it was damaged or edited")
    if said.incident != incident:
        raise NotApprovedError(f"it is for the incident {one_line(said.incident)}")
    if not all(text == one_line(text) for text in (said.who, said.where)):
        raise NotApprovedError("its names hold what cannot be shown")
    if not paper.signature:
        if signers:
            raise NotApprovedError("it is not signed")
        return Checked(said, said.who)
    return _signed(said, paper, signers)


def _name(hash_: str, content: bytes) -> str:
    return f"{hash_}-{hashlib.sha256(content).hexdigest()[:16]}.json"


def _signed(said: Approval, paper: _Paper, signers: Path | None) -> Checked:
    text = paper.approval.encode()
    with tempfile.TemporaryDirectory(prefix="salvor-approval-") as folder:
        file = Path(folder) / "signature"
        try:
            file.write_text(paper.signature, encoding="utf-8")
            public = ssh_signature.signer(paper.signature)
            good = ssh_signature.ssh_keygen("check-novalidate", NAMESPACE, ["-s", str(file)], text)
            who = _principal(signers, file, text) if signers else said.who
        except (OSError, ValueError, CannotError, NotConvergedError) as error:
            told = error.stderr if isinstance(error, CommandError) else str(error)
            raise NotApprovedError(f"its signature does not count: {one_line(told)}") from error
    return Checked(said, who, one_line(good.strip().rpartition(" ")[2]), public)


def _principal(signers: Path, file: Path, text: bytes) -> str:
    """Whose the key is, by the list of allowed signers. Raises CannotError when it is of nobody who may sign now."""
    allowed = ["-f", str(signers.expanduser().absolute()), "-s", str(file)]
    found = ssh_signature.ssh_keygen("find-principals", NAMESPACE, allowed).splitlines()
    for principal in found:
        try:
            ssh_signature.ssh_keygen("verify", NAMESPACE, ["-I", principal, *allowed], text)
        except CommandError:
            continue
        return one_line(principal)
    raise CannotError(f"{signers} does not allow this key to sign approvals now")


def is_same(one: str, other: str) -> bool:
    """Whether two names are one operator's: without regard to case, width and spaces."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
