"""Trees and repositories for the tests of kind files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from salvor.files import making

from tests.files.lab import PASSWORD, Lab, make_nasty, make_repository


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other machine makes our repositories."""
    monkeypatch.setattr(making, "_SETTLING", 0.0)


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without a snapshot, to be copied."""
    place = tmp_path_factory.mktemp("restic") / "repository"
    make_repository(place)
    return place


@pytest.fixture
def lab(tmp_path: Path, empty_repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A tree with everything in it, not yet backed up, and a repository."""
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    shutil.copytree(empty_repository, tmp_path / "local")
    made = Lab(tmp_path, {"local": str(tmp_path / "local")})
    make_nasty(made.tree)
    yield made
    for folder in tmp_path.rglob("*"):  # so that whoever we are can remove it
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)


@pytest.fixture
def wide_lab(lab: Lab, empty_repository: Path) -> Lab:
    """One with a second repository, off-site."""
    shutil.copytree(empty_repository, lab.root / "off-site")
    return Lab(lab.root, {**lab.repositories, "off-site": str(lab.root / "off-site")})
