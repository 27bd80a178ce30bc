"""What an old host offers, as our own ssh hears it, and what therefore has to be opened for it: one algorithm of each
kind where the two have none in common, and no more.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache

from salvor.errors import CannotError

WORDS = {
    "KexAlgorithms": "key exchange",
    "HostKeyAlgorithms": "host key",
    "Ciphers": "cipher",
    "MACs": "checksum of packets",
    "PubkeyAcceptedAlgorithms": "signature of our key",
}
"""Options of ssh_config, and what each is about."""

# How `ssh -vv` names them, and `ssh -Q`.
_HEARD = {
    "KexAlgorithms": ("KEX algorithms", "kex"),
    "HostKeyAlgorithms": ("host key algorithms", "HostKeyAlgorithms"),
    "Ciphers": ("ciphers stoc", "cipher"),
    "MACs": ("MACs stoc", "mac"),
}
_RSA = {"rsa-sha2-256", "rsa-sha2-512"}
_MODERN = _RSA | {"ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"}

Offer = Mapping[str, Sequence[str]]
"""Algorithms by option, in the order of who offers them."""


def heard(log: str) -> tuple[Offer, Offer] | None:
    """What our ssh proposed and what the host did, from the log of `ssh -vv`; None when it did not come so far."""
    ours, _, theirs = log.partition("peer server KEXINIT proposal")
    if not theirs:
        return None
    return _proposal(ours.rpartition("local client KEXINIT proposal")[2]), _proposal(theirs)


def _proposal(log: str) -> Offer:
    found = {option: re.search(rf"debug2: {name}: (\S*)", log) for option, (name, _) in _HEARD.items()}
    return {option: match[1].split(",") if match else [] for option, match in found.items()}


def needed(ours: Offer, theirs: Offer, known_kinds: Sequence[str]) -> dict[str, str]:
    """What has to be opened, by option: the first in the host's order that our ssh can; for host keys, of a kind that
    is known. Raises CannotError when the two have nothing in common whatever is opened.
    """
    opened = {}
    for option, (_, query) in _HEARD.items():
        offered = theirs[option]
        if option == "HostKeyAlgorithms" and known_kinds:
            offered = [name for name in offered if _kind_of(name) in known_kinds] or offered
        if set(offered) & set(ours[option]):
            continue
        can = [name for name in offered if name in _supported(query)]
        if not can:
            raise CannotError(
                f"for {WORDS[option]} it offers only {', '.join(offered)}, which the ssh of this machine does not know",
                hint=f"ssh -Q {query} shows what it knows; an older OpenSSH knows more",
            )
        opened[option] = can[0]
    # A host that has no newer key than ssh-rsa or DSA may be too old to check a newer signature of an RSA key of ours.
    if not _MODERN & set(theirs["HostKeyAlgorithms"]):
        opened["PubkeyAcceptedAlgorithms"] = "ssh-rsa"
    return opened


def _kind_of(algorithm: str) -> str:
    return "ssh-rsa" if algorithm in _RSA else algorithm


@cache
def _supported(query: str) -> frozenset[str]:
    said = subprocess.run(["ssh", "-Q", query], capture_output=True, text=True, timeout=10, check=True)
    return frozenset(said.stdout.split())
