import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; [^\\]+)? \\$")


def run(argv: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=os.environ | environment)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose path would trip a careless script."""
    folder = tmp_path / "it's my $clone"
    folder.mkdir()
    for name in ("start", "requirements.txt", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    return folder


def machine(folder: Path, **commands: str) -> str:
    """A PATH on which the given commands answer as on another machine."""
    folder.mkdir()
    for name, body in commands.items():
        command = folder / name.replace("_", "-")
        command.write_text(f"#!/bin/sh\n{body}\n")
        command.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_every_dependency_is_pinned_as_the_project_asks() -> None:
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if pin := PIN.match(line):
            pins.setdefault(pin["name"], set()).add(pin["version"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    wrong = [
        str(requirement)
        for requirement in asked
        if not (versions := pins.get(canonicalize_name(requirement.name)))
        or not all(requirement.specifier.contains(version) for version in versions)
    ]
    assert not wrong, "write requirements.txt anew"


def test_pins_have_hashes_and_name_no_index() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    hashes = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")
    assert [line for line in lines if not PIN.match(line) and not hashes.match(line) and not line.startswith("#")] == []
    assert [line for line in lines if "://" in line] == []
    assert all(hashes.match(after) for line, after in itertools.pairwise(lines) if PIN.match(line))


@pytest.mark.parametrize(
    ("sudo", "line"),
    [
        ("exit 1", "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends postgresql-15 knot'\n"),
        (None, "su -c 'apt-get update && apt-get install -y --no-install-recommends postgresql-15 knot'\n"),
    ],
)
def test_without_root_it_prints_the_one_line_to_run(clone: Path, tmp_path: Path, sudo: str | None, line: str) -> None:
    installed = "pgbackrest openssh-client zstd restic python3-venv"
    commands = {
        "id": "echo 1000",
        "dpkg_query": f"for package in {installed}; do printf 'installed:%s ' $package; done; exit 1",
        **({"sudo": sudo} if sudo else {}),
    }
    path = machine(tmp_path / "bin", **commands)
    if sudo is None and shutil.which("sudo"):
        pytest.skip("this machine has sudo")
    result = run([str(clone / "start"), "drill"], PATH=path)
    assert (result.returncode, result.stdout) == (3, line)
    assert not (clone / ".venv").exists()


def test_a_clone_that_can_only_be_read_is_said(clone: Path, tmp_path: Path) -> None:
    """It removed what it could of a virtual environment, with a line for each file."""
    path = machine(tmp_path / "bin", dpkg_query="shift 3; printf 'installed:%s ' $*")
    argv = [str(clone / "start"), "shell"]
    if os.geteuid() == 0:
        alone = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$1/start" shell'
        argv = ["unshare", "--mount", "sh", "-c", alone, "sh", str(clone)]
    else:
        clone.chmod(0o500)
    result = run(argv, PATH=path)
    assert result.returncode == 3
    assert result.stderr.startswith(
        f"The virtual environment is to be made in {clone}, which takes nothing from you.\n"
    )


def test_an_unknown_command_is_a_usage_error(clone: Path) -> None:
    result = run([str(clone / "start"), "dril"])
    assert result.returncode == 2
    assert "There is no ./start dril.\nHINT: " in result.stderr


def test_the_shell_takes_a_command(clone: Path, tmp_path: Path) -> None:
    """`./start shell -c CMD` opened a shell that waited."""
    path = machine(tmp_path / "bin", dpkg_query="shift 3; printf 'installed:%s ' $*")
    site = clone / ".venv/bin"
    site.mkdir(parents=True)
    (site / "python").symlink_to("/usr/bin/python3")
    place = f"{clone.resolve()}: {run([str(site / 'python'), '--version']).stdout}"
    pins = b"".join((clone / name).read_bytes() for name in ("requirements.txt", "pyproject.toml"))
    (clone / ".venv/salvor-set-up").write_text(f"{place}{hashlib.sha256(pins).hexdigest()}  -\n")
    done = run(
        [str(clone / "start"), "shell", "-c", 'echo "$1 $VIRTUAL_ENV"', "sh", "said"], PATH=path, SHELL="/bin/sh"
    )
    assert done.stdout == f"said {clone}/.venv\n", done.stderr


def test_no_python_is_said_with_a_hint(clone: Path, tmp_path: Path) -> None:
    names = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
    path = machine(
        tmp_path / "bin", dpkg_query='shift 3; printf "installed:%s " "$@"', **dict.fromkeys(names, "exit 1")
    )
    start = clone / "start"
    start.write_text(start.read_text().replace(" /usr/bin/python3;", ";"))
    result = run([str(start), "drill"], PATH=path)
    assert result.returncode == 3
    assert result.stderr == (
        "No Python 3.11 or newer with its venv module was found here.\nHINT: apt-get install python3 python3-venv\n"
    )


def test_the_package_is_not_ignored_where_lib_usually_is(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "ignored").write_text("lib/\nlib\n")
    (clone / "lib/salvor").mkdir(parents=True)
    (clone / "lib/salvor/x.py").touch()
    git = ["git", "-c", f"core.excludesFile={tmp_path / 'ignored'}", "-C", str(clone)]
    assert run([*git, "init", "--quiet"]).returncode == 0
    assert run([*git, "status", "--porcelain", "--untracked-files=all", "lib"]).stdout == "?? lib/salvor/x.py\n"
