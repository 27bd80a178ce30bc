"""Signing a journal at its close, and finding whatever was done to it since.

Everything here can be done with sha256sum and ssh-keygen alone: docs/evidence.md says how.
"""

from __future__ import annotations

import re
import shlex
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from salvor import clock, durable
from salvor.change import Finding, Level
from salvor.errors import CannotError, CommandError, NotConvergedError, UsageError
from salvor.journal import FILE, ssh_signature
from salvor.journal.line import START, digest, parse, split
from salvor.journal.mirror_store import Store, numbered, store
from salvor.journal.ssh_signature import signer, ssh_keygen
from salvor.plain import amount

NAMESPACE = "salvor-journal"
SEAL = "journal.seal"
SIGNATURE = "journal.seal.sig"
PUBLIC_KEY = "journal.seal.pub"

_SEAL = re.compile(rb"([1-9][0-9]{0,9}) ([0-9a-f]{64})\n")


def sign(folder: Path, key: Path) -> None:
    """Seal the journal in `folder` and sign the seal with the SSH key in the file `key` (public: its agent signs).

    Writes `journal.seal` (the number of lines, a space, the SHA-256 of the last one), `journal.seal.sig`
    (`ssh-keygen -Y sign`, namespace `salvor-journal`) and `journal.seal.pub` (the public key). Signing again, after
    more lines, replaces them. Raises CannotError: the journal is damaged, the key cannot sign, or the disk is full.
    """
    lines, rest = split(_read(folder))
    wrong = [finding for finding in _chain(folder.name, lines) if finding.level is Level.FAIL]
    if wrong or rest:
        what = f"{wrong[0].figure}: {wrong[0].detail}" if wrong else "a crash left a part of a line at its end"
        raise CannotError(
            f"The journal of incident {folder.name} is not whole, so it was not signed. {what}",
            safe="nothing was written",
            hint=f"inv incident.check --incident={folder.name}",
        )
    seal = f"{len(lines)} {digest(lines[-1])}\n".encode()
    key = key.expanduser().absolute()
    try:
        signed = ssh_signature.sign(seal, key, NAMESPACE)
    except (CannotError, NotConvergedError) as error:
        said = error.stderr.strip().splitlines()[-1:] if isinstance(error, CommandError) else [error.what]
        raise CannotError(
            f"The journal of incident {folder.name} could not be signed with {key}: {''.join(said)}",
            safe="the journal is whole on disk, without a signature",
            hint=f"ssh-add {shlex.quote(str(key))}, then: inv incident.close --incident={folder.name}",
        ) from error
    try:
        durable.replace(folder / SEAL, seal)
        durable.replace(folder / SIGNATURE, signed.encode())
        durable.replace(folder / PUBLIC_KEY, signer(signed) + b"\n")
    except OSError as error:
        raise CannotError(
            f"The signature of incident {folder.name} cannot be written: {error.strerror}.",
            safe="the journal is whole on disk",
            hint=f"df -h {shlex.quote(str(folder))}; then: inv incident.close --incident={folder.name}",
        ) from error


def check(folder: Path, allowed_signers: Path | None = None, *, mirror: str | None = None) -> list[Finding]:
    """What was done to the journal in `folder`: lines edited, reordered, removed, added or cut off, and who signed it.

    Each finding that is not a pass names the line in its `figure`. Without a seal and without a `mirror` (a folder,
    `file:///folder`, `s3://bucket/prefix`) nothing can tell what happened at the journal's end, and without
    `allowed_signers` (a file, see ssh-keygen(1), ALLOWED SIGNERS) not whose the key is: that is Level.UNKNOWN.
    Writes nothing. Raises CannotError when no journal can be read, UsageError for a mirror that cannot be.
    """
    lines, rest = split(_read(folder))
    sealed = (folder / SEAL).exists() or (folder / SIGNATURE).exists()
    findings = [*_chain(folder.name, lines)]
    if rest:
        findings.append(
            _finding(
                folder.name,
                "tail",
                Level.FAIL if sealed else Level.WARN,
                f"line {len(lines) + 1}",
                f"{len(rest)} bytes without an end of line: a crash left them, and the next command on this incident "
                "cuts them off and says so",
            )
        )
    if sealed:
        findings += _seal(folder, lines)
        findings += _signature(folder, lines, allowed_signers)
    elif any((parse(line) or {}).get("kind") == "closed" for line in lines):
        findings.append(_finding(folder.name, "seal", Level.WARN, "", "closed, and not signed"))
    elif mirror is None:
        detail = (
            "not closed yet: only a mirror can tell whether lines at the end were cut off or the last one was changed"
        )
        findings.append(_finding(folder.name, "seal", Level.UNKNOWN, f"line {len(lines)}", detail))
    if mirror is not None:
        findings += _mirrored(folder.name, lines, mirror)
    return findings


def _read(folder: Path) -> bytes:
    try:
        return durable.read(folder / FILE)
    except OSError as error:
        raise CannotError(
            f"There is no journal {folder / FILE} that can be read: {error.strerror}.", hint="inv incidents"
        ) from error


def _finding(incident: str, check: str, level: Level, figure: str, detail: str) -> Finding:
    return Finding(subject=f"journal of {incident}", check=check, level=level, figure=figure, detail=detail)


def _chain(incident: str, lines: Sequence[bytes]) -> Iterator[Finding]:
    """Every line's number follows the one before it, and so does its hash."""
    whole = bool(lines)
    if not lines:
        yield _finding(incident, "chain", Level.FAIL, "line 1", "there is no whole line")
    before, number_before = START, 0
    for position, raw in enumerate(lines, 1):
        line = parse(raw)
        number = line.get("n") if line else None
        wrong = ""
        if line is None:
            wrong = "it is not one JSON object: it was damaged or edited"
        elif type(number) is not int or number != number_before + 1:
            wrong = (
                f"its number is {number!r} where {number_before + 1} belongs: lines were removed, added or reordered"
            )
        elif line.get("previous") != before:
            wrong = (
                f"it does not continue line {position - 1}: one of the two was edited"
                if position > 1
                else ("it is not the first line, or it was edited")
            )
        if wrong:
            whole = False
            yield _finding(incident, "chain", Level.FAIL, f"line {position}", wrong)
        before = digest(raw)
        number_before = number if type(number) is int else number_before + 1
    if whole:
        yield _finding(incident, "chain", Level.PASS, f"{len(lines)} lines", f"the last one's SHA-256 is {before}")


def _seal(folder: Path, lines: Sequence[bytes]) -> Iterator[Finding]:
    """The journal ends where the seal says, with the line that it says."""
    try:
        sealed = _SEAL.fullmatch(durable.read(folder / SEAL))
    except OSError as error:
        detail = f"{SEAL} cannot be read, but {SIGNATURE} is there: {error.strerror}"
        yield _finding(folder.name, "seal", Level.FAIL, "", detail)
        return
    if not sealed:
        yield _finding(folder.name, "seal", Level.FAIL, "", f"{SEAL} is not a seal: it was damaged or edited")
        return
    count = int(sealed[1])
    if count > len(lines):
        detail = f"the seal counts {count} lines: what is missing was cut off at the end"
        yield _finding(folder.name, "seal", Level.FAIL, f"line {len(lines) + 1}", detail)
    elif digest(lines[count - 1]).encode() != sealed[2]:
        detail = "it is not the line that was sealed: it was edited, or another line stands in its place"
        yield _finding(folder.name, "seal", Level.FAIL, f"line {count}", detail)
    elif count < len(lines):
        detail = f"added after line {count} was sealed; sign again with: inv incident.close --incident={folder.name}"
        yield _finding(folder.name, "seal", Level.WARN, f"line {count + 1}", detail)
    else:
        yield _finding(folder.name, "seal", Level.PASS, f"{count} lines", "the journal ends where it was sealed")


def _signature(folder: Path, lines: Sequence[bytes], allowed_signers: Path | None) -> Iterator[Finding]:
    """The seal is signed, by whom is allowed."""
    incident = folder.name
    try:
        seal = durable.read(folder / SEAL)
        signed_by = signer(durable.read(folder / SIGNATURE).decode("ascii", "replace"))
        public_key = durable.read(folder / PUBLIC_KEY) if (folder / PUBLIC_KEY).exists() else signed_by
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "it was damaged or edited"
        yield _finding(incident, "signature", Level.FAIL, "", f"no signature of the seal can be read: {said}")
        return
    signature = ["-s", str((folder / SIGNATURE).absolute())]
    try:
        good = ssh_keygen("check-novalidate", NAMESPACE, signature, seal).strip()
    except CommandError as error:
        yield _finding(incident, "signature", Level.FAIL, "", f"it does not fit the seal: {error.stderr.strip()}")
        return
    except (CannotError, NotConvergedError) as error:
        yield _finding(incident, "signature", Level.UNKNOWN, "", error.what)
        return
    if public_key.strip() != signed_by:
        yield _finding(incident, "signature", Level.FAIL, "", f"{PUBLIC_KEY} is not the key that signed")
    if allowed_signers is None:
        detail = f"{good}: whose key it is can only a list of allowed signers tell (--signers=FILE)"
        yield _finding(incident, "signature", Level.UNKNOWN, "", detail)
        return
    # As git does: a key that has expired since was good when it signed.
    signed_at = (parse(lines[-1]) or {}).get("at") if lines else None
    allowed = ["-f", str(allowed_signers.expanduser().absolute()), *signature, *_at(signed_at)]
    said = ""
    try:
        for principal in ssh_keygen("find-principals", NAMESPACE, allowed).splitlines():
            try:
                good = ssh_keygen("verify", NAMESPACE, ["-I", principal, *allowed], seal).strip()
            except CommandError as error:
                said = error.stderr.strip()
            else:
                yield _finding(incident, "signature", Level.PASS, principal, good)
                return
    except CommandError as error:
        said = error.stderr.strip()
    yield _finding(incident, "signature", Level.FAIL, "", f"{good}, who is not allowed by {allowed_signers}: {said}")


def _at(moment: object) -> list[str]:
    try:
        return [f"-Overify-time={clock.read_time(str(moment)):%Y%m%d%H%M%S}"]
    except UsageError:
        return []


def _mirrored(incident: str, lines: Sequence[bytes], location: str) -> Iterator[Finding]:
    """Every line in the mirror is in the journal, the same one."""
    held: dict[int, set[str]] = defaultdict(set)
    try:
        for name in store(location, incident).names():
            if found := numbered(name):
                held[found[0]].add(found[1])
    except OSError as error:
        yield _finding(incident, "mirror", Level.UNKNOWN, "", f"{location} cannot be read: {error.strerror or error}")
        return
    good = True
    further = sorted(number for number in held if number > len(lines))
    if further and (who := _went_on(store(location, incident), held[further[0]], lines)):
        good = False
        detail = (
            f"{who} went on with it: {amount(len(further), 'line')} in the mirror, from this one on, are not here, and "
            f"the next command on this incident brings them. Had any been cut off here, it would look the same"
        )
        yield _finding(incident, "mirror", Level.UNKNOWN, f"line {further[0]}", detail)
        further = []
    for number in sorted(number for number in held if number <= len(lines)) + further:
        level, wrong = Level.FAIL, ""
        if number > len(lines):
            wrong = (
                "the mirror holds it, the journal does not: lines were cut off at the end, or could never be written"
            )
        elif digest(lines[number - 1]) not in held[number]:
            wrong = "it is not the line that the mirror holds: it was edited, or another machine went on without it"
        elif len(held[number]) > 1:
            wrong = (
                "the mirror holds another line of this number too: one that could never be written to the journal, or "
                "that a machine wrote which did not have this one"
            )
            level = Level.WARN
        if wrong:
            good = False
            yield _finding(incident, "mirror", level, f"line {number}", wrong)
    if missing := [number for number in range(1, len(lines) + 1) if number not in held]:
        detail = f"{len(missing)} lines, from this one on, are not in the mirror"
        yield _finding(incident, "mirror", Level.WARN, f"line {missing[0]}", detail)
    elif good:
        yield _finding(incident, "mirror", Level.PASS, f"{len(lines)} lines", f"each is in {location}")


def _went_on(there: Store, digests: Iterable[str], lines: Sequence[bytes]) -> str:
    """Who went on with the journal on another machine, by the mirror's line after its last one; empty if nobody did."""
    number = len(lines) + 1
    for each in digests:
        try:
            line = parse(there.get(f"{number:06d}-{each}.json")) or {}
        except OSError:
            continue
        follows = line.get("n") == number and line.get("previous") == digest(lines[-1])
        if follows and line.get("kind") in ("taken", "resumed") and line.get("where") != socket.gethostname():
            return f"{line.get('by')} on {line.get('where')}"
    return ""
