"""Checksums of files where they lie: only names go there, only checksums come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from salvor.errors import CannotError
from salvor.shell import Shell

_READING = 6 * 3600.0
_FILES, _BYTES = 20_000, 1 << 28
"""How many files, or bytes of them, are summed up in one go; two go on side by side."""
# OpenSSL uses the processor's own instructions: it takes a fifth of the time of sha256sum of Debian 12. It writes some
# names otherwise than they are, and over one line or several, as its version has it.
_SUM = r"""
cd -- "$1" || exit 1
if [ "$2" = plain ] && command -v openssl >/dev/null; then
    xargs -0 -n 1000 openssl dgst -sha256 -r
else
    xargs -0 -n 1000 sha256sum -z | tr '\n\0' '?\n'
fi | cut -b 1-64
"""


def digests(shell: Shell, folder: str, files: Iterable[tuple[bytes, int]]) -> dict[bytes, str]:
    """The SHA-256 of files on a host (64 hex digits) by their names; `files` are names relative to `folder`, and sizes
    in bytes. Raises CannotError when one cannot be read.
    """
    known = list(files)
    strange = [one for one in known if b"\n" in one[0] or b"\\" in one[0]]
    plain = [one for one in known if b"\n" not in one[0] and b"\\" not in one[0]]
    batches = [(names, how) for how, some in (("plain", plain), ("strange", strange)) for names in _batches(some)]
    found: dict[bytes, str] = {}
    with ThreadPoolExecutor(2, thread_name_prefix="checksums") as pool:
        for each in pool.map(lambda batch: _sums(shell, folder, *batch), batches):
            found |= each
    return found


def _batches(files: Iterable[tuple[bytes, int]]) -> Iterator[list[bytes]]:
    names: list[bytes] = []
    size = 0
    for name, bytes_ in files:
        names.append(name)
        size += bytes_
        if len(names) >= _FILES or size >= _BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def _sums(shell: Shell, folder: str, names: Sequence[bytes], how: str) -> dict[bytes, str]:
    said = shell.run(["sh", "-c", _SUM, "sh", folder, how], input=b"\0".join(names) + b"\0", deadline=_READING)
    sums = said.stdout.split()
    if len(sums) != len(names) or not all(len(each) == 64 for each in sums):
        raise CannotError(
            f"Files in {folder} on {shell.where} could not be read back: {said.stderr.strip()[:300]}",
            safe="what is live is as it was",
            hint=f"look at that disk: on {shell.where}, dmesg",
        )
    return dict(zip(names, sums, strict=True))
