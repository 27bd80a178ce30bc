"""Disks that /etc/fstab names and that are not mounted: what seems to be gone may be whole on one of them."""

from __future__ import annotations

import shlex

UNMOUNTED = r"""
unmounted() { # unmounted PATH: the mount points of fstab(5) at or above it at which nothing is mounted
    findmnt --fstab --noheadings --list --output TARGET 2>/dev/null | while IFS= read -r point; do
        case $point in /?*) point=$(readlink -m -- "$point") ;; *) continue ;; esac
        case $1/ in "$point"/*) findmnt --mountpoint "$point" >/dev/null || printf '%s\n' "$point" ;; esac
    done
}
"""
"""Defines `unmounted PATH` for POSIX sh: prints each in a line."""


def told(point: str) -> str:
    """What is the matter, for people."""
    return f"{point}, which /etc/fstab names, is not mounted"


def mend(point: str, where: str, *, then: str = "") -> str:
    """What to do about it on the machine `where`; `then`: what comes behind the mount."""
    return (
        f"on {where}: mount {shlex.quote(point)}{then}; where that disk is lost, mount another one there, or take its "
        "line out of /etc/fstab; then the same command again"
    )
