"""Repositories that are elsewhere: restic itself against a real sshd, and against an emulation of S3 (moto) that checks
every signature. Azure and Google Cloud Storage were tried by hand (docs/files.md); their settings are checked here.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import ValidationError
from salvor import shell
from salvor.change import Finding, Level, Progress
from salvor.errors import CannotError
from salvor.files import locations, watching
from salvor.files import restic as engine
from salvor.files.settings import RepositorySettings
from salvor.ssh.settings import DoorSettings
from salvor.systems.files import Files

from tests import ssh_server
from tests.files.lab import Lab, act, everything
from tests.files.test_tree import HOUR, judged, staged, way_of
from tests.ssh_server import Server


def opened(lab: Lab, location: str, *others: dict[str, Any], **settings: Any) -> Files:
    """The tree, with a repository there."""
    password = f"file:{lab.root / 'password'}"
    there = {"name": "off-site", "location": location, "password": password, **settings}
    return lab.open(repositories=[there, *({"password": password, **other} for other in others)])


def goes_there_and_comes_back(lab: Lab, system: Files) -> None:
    was = everything(lab.tree)
    act(system, "backup", kind="snapshot")
    way = staged(system)
    assert "from off-site" in way.why
    assert everything(lab.box / "staged") == was
    assert Level.FAIL not in judged(system.verify(way, HOUR)).values()


# ------------------------------------------------------------------------------------------ SFTP


@pytest.fixture
def sftp(lab: Lab, empty_repository: Path) -> Iterator[tuple[Server, str]]:
    """An sshd that serves files, and the location of a repository there."""
    with ssh_server.serving(more="Subsystem sftp internal-sftp") as server:
        place = server.folder / "repository"
        shutil.copytree(empty_repository, place)
        if os.geteuid() == 0:
            account = pwd.getpwnam(ssh_server.USER)
            for path in (place, *place.rglob("*")):
                os.chown(path, account.pw_uid, account.pw_gid)
        yield server, f"sftp://{ssh_server.USER}@{server.address}:{server.port}/{place}"


def test_by_sftp_a_tree_goes_to_a_host_that_is_known_and_to_no_other(
    lab: Lab, sftp: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, location = sftp
    key = str(server.home / ".ssh/id_ed25519")
    host_key = (server.folder / "host_key.pub").read_text()
    (lab.tree / "sparse").unlink()
    goes_there_and_comes_back(lab, opened(lab, location, ssh={"keys": [key], "host_keys": [host_key]}))

    stranger = way_of(opened(lab, location, ssh={"keys": [key]})).why
    assert "The host key of the repository off-site" in stranger
    assert "is not known on this machine; the host was refused" in stranger
    ssh_server.make_key(lab.root / "another")
    another = (lab.root / "another.pub").read_text()
    changed = opened(lab, location, ssh={"keys": [key], "host_keys": [another, another]})
    assert "has changed on this machine; the host was refused" in way_of(changed).why
    with pytest.raises(CannotError, match=r"refuses who we say we are.*Permission denied"):
        act(
            opened(lab, location, ssh={"keys": [str(lab.root / "another")], "host_keys": [host_key], "agent": False}),
            "backup",
            kind="snapshot",
        )

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(engine, "ANSWERING", 1.0)
        hangs = opened(lab, f"sftp://127.0.0.1:{silent.getsockname()[1]}//srv/backup")
        (found,) = [one for one in hangs.audit(deep=False) if isinstance(one, Finding)]
        assert (found.check, found.level) == ("integrity", Level.UNKNOWN)
        assert "gave no answer within 1.0 s" in found.detail


def test_a_backup_gives_up_a_host_that_freezes_midway(
    lab: Lab, sftp: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, location = sftp
    for number in range(50):
        (lab.tree / f"more-{number}").write_bytes(os.urandom(200_000))
    system = opened(
        lab,
        location,
        ssh={
            "keys": [str(server.home / ".ssh/id_ed25519")],
            "host_keys": [(server.folder / "host_key.pub").read_text()],
        },
    )
    monkeypatch.setattr(watching, "SILENCE", 1.0)
    frozen = False
    with pytest.raises(CannotError, match=r"was lost midway: it took nothing for 1\.0 s"):
        for progress in system.apply(system.change("backup", kind="snapshot", why="-", no_undo="-")):
            if not frozen and isinstance(progress, Progress) and progress.unit == "bytes":
                frozen = True
                for session in server.sessions():
                    os.kill(session, signal.SIGSTOP)
    assert frozen


def test_what_ssh_is_configured_to_do_does_not_let_a_stranger_in(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host *\n    StrictHostKeyChecking no\n    BatchMode no\n    ForwardAgent yes\n")
    program, *options = locations.login("sftp:backup@nas.example.com:/srv/restic", DoorSettings())
    asked = [program, "-G", "-F", str(tmp_path / "config"), *options]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"stricthostkeychecking true", "batchmode yes", "forwardagent no", "connecttimeout 10"} <= set(said)
    assert {"user backup", "hostname nas.example.com"} <= set(said)


# ------------------------------------------------------------------------------------------ S3


@pytest.fixture
def bucket(empty_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The location of a repository in a bucket that only a user with the key in the environment may enter."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"

    def set_up(what: str, text: str = "") -> None:
        talk = HTTPConnection(host, int(port), timeout=10)
        talk.request("POST", f"/moto-api/{what}", text)
        assert talk.getresponse().status == 200
        talk.close()

    try:
        set_up("reset")
        anybody = {"region_name": "eu-west-1", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
        s3, iam = (boto3.client(name, endpoint_url=endpoint, **anybody) for name in ("s3", "iam"))
        s3.create_bucket(Bucket="backups", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        for path in empty_repository.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), "backups", f"tree/{path.relative_to(empty_repository)}")
        iam.create_user(UserName="backup")
        may = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="backup", PolicyName="s3", PolicyDocument=json.dumps(may))
        key = iam.create_access_key(UserName="backup")["AccessKey"]
        monkeypatch.setenv("SHOP_KEY", key["AccessKeyId"])
        monkeypatch.setenv("SHOP_SECRET", key["SecretAccessKey"])
        set_up("reset-auth", "0")
        yield f"s3:{endpoint}/backups/tree"
    finally:
        set_up("reset-auth", "inf")
        set_up("reset")
        server.stop()


def test_by_s3_a_tree_goes_to_a_bucket_and_wrong_credentials_are_called_that(
    lab: Lab, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entering: dict[str, Any] = {
        "environment": {
            "AWS_ACCESS_KEY_ID": "env:SHOP_KEY",
            "AWS_SECRET_ACCESS_KEY": "env:SHOP_SECRET",
            "AWS_DEFAULT_REGION": "eu-west-1",
        }
    }
    (lab.tree / "sparse").unlink()
    goes_there_and_comes_back(lab, opened(lab, bucket, **entering))

    monkeypatch.setenv("SHOP_SECRET", "another-secret")
    local = {"name": "local", "location": lab.repositories["local"]}
    refused = opened(lab, bucket, local, **entering)
    (said,) = [one for one in act(refused, "backup", kind="snapshot") if isinstance(one, Finding)]
    assert said.figure == "off-site does not have it"
    assert said.detail.startswith("The storage of the repository off-site (s3:")
    assert "refuses who we say we are" in said.detail
    assert "from local" in way_of(refused).why
    found = {one.level for one in refused.audit(deep=False) if isinstance(one, Finding) and one.check == "integrity"}
    assert found == {Level.UNKNOWN, Level.PASS}


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("location", "settings", "wrong"),
    [
        ("ftp://host/folder", {}, "is no repository: write /FOLDER, or one of s3, azure"),
        ("backup/restic", {}, "is no repository"),
        ("s3:https://s3.example.com", {}, "write s3:https://HOST/BUCKET"),
        ("sftp:backup@host", {}, "write sftp:USER@HOST:/FOLDER"),
        ("sftp:-oProxyCommand=x:/srv", {}, "neither a host's name nor an IP address"),
        ("azure:box", {}, "write azure:CONTAINER:/FOLDER"),
        ("gs:/box", {}, "write gs:BUCKET:/FOLDER"),
        ("rest:https://user:word@host/", {}, "a password in a location would be shown"),
        ("s3:host/box", {"environment": {"AWS_ACCESS_KEY_ID": "env:A"}}, "lacks AWS_SECRET_ACCESS_KEY"),
        ("s3:host/box", {"environment": {"AWS_ACCESS_KEY_ID": "AKIA"}}, "a secret is never written here"),
        ("azure:box:/", {"environment": {"AZURE_ACCOUNT_KEY": "env:A"}}, "lacks AZURE_ACCOUNT_NAME"),
        ("b2:box", {}, "lacks B2_ACCOUNT_ID, B2_ACCOUNT_KEY"),
        (
            "gs:box:/",
            {"environment": {"GOOGLE_APPLICATION_CREDENTIALS": "file:/etc/salvor/google.json"}},
            "write the value itself",
        ),
        ("s3:host/box", {"ssh": {"user": "backup"}}, "ssh: is for repositories of sftp"),
        ("sftp:host:/srv", {"ssh": {"passphrase": "env:P"}}, "name a key without one"),
        ("sftp:host:/srv", {"ssh": {"keys": ["/k -oProxyCommand=x"]}}, "neither spaces, quotes nor backslashes"),
    ],
)
def test_what_restic_would_not_take_is_said_at_load(location: str, settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        RepositorySettings.model_validate({"name": "x", "location": location, "password": "env:P", **settings})


@pytest.mark.parametrize(
    ("location", "environment"),
    [
        ("s3:s3.eu-west-1.amazonaws.com/box/folder", {}),
        ("azure:box:/folder", {"AZURE_ACCOUNT_NAME": "shop", "AZURE_ACCOUNT_KEY": "env:KEY"}),
        ("gs:box:/", {"GOOGLE_PROJECT_ID": "shop", "GOOGLE_APPLICATION_CREDENTIALS": "/etc/salvor/google.json"}),
        ("sftp:host:folder", {}),
        ("sftp://[::1]:2222//srv/restic", {}),
        ("rclone:box:folder", {}),
    ],
)
def test_what_restic_takes_is_taken(location: str, environment: dict[str, str]) -> None:
    said = {"name": "x", "location": location, "password": "env:P", "environment": environment}
    assert RepositorySettings.model_validate(said).location == location


# ------------------------------------------------------------------------------------------ newer restics


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (10, "Fatal: repository does not exist: no such bucket\nIs there a repository at the following location?\nx",
         "There is nothing to read at the repository off-site (s3:host/box): repository does not exist: no such"),
        (11, "unable to create lock in backend: repository is already locked by PID 5 on web-1 by root",
         "restic could not use the repository off-site (s3:host/box): unable to create lock in backend: repository is "
         "already locked by PID 5 on web-1 by root"),
        (12, "Fatal: wrong password or no key found", "The password of the repository off-site (s3:host/box) is not"),
    ],
)  # fmt: skip
def test_errors_that_newer_restics_say_as_json_are_understood(code: int, message: str, told: str) -> None:
    """By its documentation (Scripting, exit errors): nothing newer than 0.14 is installed here."""
    repository = engine.Repository("off-site", "s3:host/box", shell.local(), "env:P")
    said = json.dumps({"message_type": "exit_error", "code": code, "message": message})
    error = repository.explained(f"{said}\n", ["restic"])
    assert error.what.startswith(told)
    assert ("where none was made yet, inv backup makes it" in error.hint) == (code == 10), "the first day"
