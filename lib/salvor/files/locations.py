"""Where a restic repository is: the kinds of places, what each asks for, and how restic is let in over SSH."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from salvor.secrets import check_reference, resolve
from salvor.ssh import known
from salvor.ssh.settings import DoorSettings, check_address, check_user

_KINDS = {
    "s3": (r"s3:(https?://)?[^/:@]+(:\d+)?/[^/].*", "s3:https://HOST/BUCKET/FOLDER"),
    "azure": (r"azure:[^/:]+:/.*", "azure:CONTAINER:/FOLDER"),
    "gs": (r"gs:[^/:]+:/.*", "gs:BUCKET:/FOLDER"),
    "sftp": (
        r"sftp:(//)?(?P<user>[^@/:]+@)?(?P<host>\[[^]]+\]|[^:/@]+)(?(1)(?P<port>:\d+)?/|:)[^~].*",
        "sftp:USER@HOST:/FOLDER or sftp://USER@HOST:PORT//FOLDER",
    ),
    "rest": (r"rest:https?://.+", "rest:https://HOST/FOLDER"),
    "b2": (r"b2:[^/:]+(:.*)?", "b2:BUCKET:FOLDER"),
    "swift": (r"swift:[^/:]+:/.*", "swift:CONTAINER:/FOLDER"),
    "rclone": (r"rclone:[^:]+:.*", "rclone:REMOTE:FOLDER"),
}
_TOGETHER = {
    "s3": ({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, False),  # without any: the role of the machine
    "azure": ({"AZURE_ACCOUNT_NAME"}, True),  # without a key: the identity of the machine, from restic 0.16 on
    "b2": ({"B2_ACCOUNT_ID", "B2_ACCOUNT_KEY"}, True),
}
_NO_SECRETS = {
    "AWS_CONFIG_FILE",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AZURE_ACCOUNT_NAME",
    "AZURE_ENDPOINT_SUFFIX",
    "AZURE_FORCE_CLI_CREDENTIAL",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_PROJECT_ID",
    "SSL_CERT_FILE",
}
"""What restic reads from its environment and is no secret: it may stand in the inventory, and is not masked."""
_UNQUOTED = re.compile(r"[^\s'\"\\]+")
_CONNECTING = 10  # seconds, also for the greeting of a server that takes connections and says nothing


def check(location: str) -> str:
    """`location`. Raises ValueError for what restic would not take, and for one that holds a password."""
    kind = location.partition(":")[0]
    if not location.isprintable() or re.search(r"//[^/@]*:[^/@]*@", location):
        raise ValueError("a password in a location would be shown; name it in environment: (this value is not shown)")
    if location.startswith("/"):
        return location
    if kind not in _KINDS:
        raise ValueError(f"{location!r} is no repository: write /FOLDER, or one of {', '.join(_KINDS)}, as in s3:...")
    pattern, form = _KINDS[kind]
    if not re.fullmatch(pattern, location):
        raise ValueError(f"{location!r} is no repository of {kind}: write {form}")
    if kind == "sftp":
        user, host, _ = _who_and_where(location)
        check_address(host)
        check_user(user or "any")
    return location


def check_environment(location: str, environment: Mapping[str, str]) -> None:
    """Raises ValueError when what a kind of place asks for is missing by half, or a secret stands there itself."""
    for name, value in environment.items():
        if name not in _NO_SECRETS:
            check_reference(value)
        elif value.startswith("file:"):
            raise ValueError(f"{name}: restic is not given what is in that file; write the value itself")
    names, always = _TOGETHER.get(location.partition(":")[0], (set(), False))
    if (missing := names - environment.keys()) and (always or missing != names):
        raise ValueError(f"environment: lacks {', '.join(sorted(missing))}, which {location} asks for")


def resolved(environment: Mapping[str, str]) -> dict[str, str]:
    """What restic finds in its environment. Raises CannotError when a secret cannot be had."""
    return {
        name: value if name in _NO_SECRETS and not value.startswith(("env:", "cmd:")) else resolve(value)
        for name, value in environment.items()
    }


def check_door(location: str, door: DoorSettings) -> None:
    """Raises ValueError for what cannot be done for restic, which lets the system's own ssh log in."""
    if door != DoorSettings() and not location.startswith("sftp:"):
        raise ValueError("ssh: is for repositories of sftp")
    if door.password or door.passphrase or door.legacy:
        raise ValueError("ssh: restic can neither give a password nor open old algorithms; name a key without one")
    if not all(map(_UNQUOTED.fullmatch, door.keys)):
        raise ValueError("ssh: the path of a key may hold neither spaces, quotes nor backslashes")


def login(location: str, door: DoorSettings) -> Sequence[str]:
    """The command that logs in to a repository of sftp; none for others. It asks nobody, accepts no unknown host key
    whatever ~/.ssh/config says, and gives up on a host that falls silent.
    """
    if not location.startswith("sftp:"):
        return ()
    user, host, port = _who_and_where(location)
    user, port = door.user or user, str(door.port or port)
    argv = ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", f"-oConnectTimeout={_CONNECTING}"]
    argv += ["-oServerAliveInterval=5", "-oServerAliveCountMax=3", "-oForwardAgent=no", "-oClearAllForwardings=yes"]
    argv += [f"-oPort={port}"] if port else []
    argv += [f"-oUser={user}"] if user else []
    argv += [f"-oIdentityFile={key}" for key in door.keys]
    argv += ["-oIdentitiesOnly=yes"] if door.keys else []
    argv += [] if door.agent else ["-oIdentityAgent=none"]
    if door.host_keys:
        name = known.entry(host, int(port or 22))
        lines = " ".join(f"{name} {key}" for key in door.host_keys)
        argv += ["-oUserKnownHostsFile=none", "-oGlobalKnownHostsFile=none"]
        argv += [rf'-oKnownHostsCommand=/usr/bin/printf "%%s %%s %%s\n" {lines}']  # OpenSSH 8.5 and newer
    return [*argv, host, "-s", "sftp"]


def options(login: Sequence[str]) -> Sequence[str]:
    """What restic is to be told so that it logs in by this command. It reads options as a line of CSV, splits the
    command by spaces and quotes, and starts no shell.
    """
    command = " ".join(one if _UNQUOTED.fullmatch(one) else f"'{one}'" for one in login)
    return ("-o", '"{}"'.format(f"sftp.command={command}".replace('"', '""'))) if login else ()


def _who_and_where(location: str) -> tuple[str, str, str]:
    """The user and the port, empty when not said, and the host of a repository of sftp."""
    found = re.fullmatch(_KINDS["sftp"][0], location)
    assert found
    return (found["user"] or "").rstrip("@"), found["host"].strip("[]"), (found["port"] or "").lstrip(":")
