"""The first day on call: the whole walkthrough by papermill's own command, and what it refuses to touch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import salvor.sandbox
from salvor import clock, clone
from salvor.errors import CannotError, UsageError
from salvor.notebook import walkthrough
from salvor.sandbox import disasters, harm
from salvor.sandbox.harm import Struck
from salvor.sandbox.layout import Layout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"disaster": "wrong-update", "platform": "production"}, "never 'production'"),
        ({"disaster": "meteor", "platform": "sandbox"}, "there is no 'meteor'"),
        ({"disaster": "wrong-update", "platform": "sandbox", "service": "orders"}, "no such parameter"),
    ],
)
def test_it_refuses_all_but_a_disaster_of_the_sandbox(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        walkthrough.open(given)
    assert refused.value.safe == "nothing was changed"


def begun() -> walkthrough.Walkthrough:
    return walkthrough.open({"disaster": "drop-table", "platform": "sandbox"})


def test_it_leaves_a_sandbox_alone_that_it_did_not_make(sandbox: Layout) -> None:
    with pytest.raises(CannotError, match="did not make it") as refused:
        begun().up()
    assert refused.value.hint.startswith("inv sandbox.down")
    with pytest.raises(CannotError, match="did not make it"):
        begun().down()
    assert all(part.up for part in salvor.sandbox.status())


def test_it_breaks_nothing_before_it_looked_what_stands(sandbox: Layout) -> None:
    with pytest.raises(CannotError, match=r"learn\.up\(\)"):
        begun().break_it()
    for look in (begun().plan, begun().survivors):
        with pytest.raises(CannotError, match="Nothing is broken yet"):
            look()
    assert all(part.up for part in salvor.sandbox.status())


def test_a_cell_that_is_run_twice_or_after_a_restart_of_the_kernel_breaks_nothing_more(
    sandbox: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, moment = sandbox.place / "walkthrough", clock.now() - timedelta(minutes=1)
    mark.touch()
    harm.note(sandbox, Struck("wrong-update", moment, "a"))
    before = disasters.struck(sandbox)
    try:
        learn = walkthrough.open({"disaster": "wrong-update", "platform": "sandbox"})
        learn.up()
        learn.break_it()
        assert f"At {clock.write_time(moment)}" in capsys.readouterr().out
        other = begun()
        other.up()
        with pytest.raises(CannotError, match="was broken before, by wrong-update"):
            other.break_it()
        assert disasters.struck(sandbox) == before
        with pytest.raises(CannotError, match="in this walk yet"):
            learn.undo()
    finally:
        (sandbox.place / "disasters.jsonl").unlink()
        mark.unlink()


def test_a_platform_that_only_bears_the_name_is_never_broken(
    sandbox: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = (clone.root() / "inventory/sandbox/platform.yaml").read_text()
    (tmp_path / "inventory/sandbox").mkdir(parents=True)
    (tmp_path / "inventory/sandbox/platform.yaml").write_text(real.replace("${root}/a/data", "/srv/orders/data"))
    assert "/srv/orders/data" in (tmp_path / "inventory/sandbox/platform.yaml").read_text()
    monkeypatch.setenv("SALVOR_INVENTORY", str(tmp_path / "inventory"))
    mark = sandbox.place / "walkthrough"
    mark.touch()
    try:
        learn = begun()
        with pytest.raises(UsageError, match="not the sandbox that stands"):
            learn.up()
        with pytest.raises(CannotError, match=r"learn\.up\(\)"):
            learn.break_it()
    finally:
        mark.unlink()
