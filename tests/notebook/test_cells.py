import json
import queue
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from salvor import pages
from salvor.errors import HeldError, NotProvenError, PlanMovedError, UsageError
from salvor.journal import Journal, story
from salvor.notebook import cells as notebook
from salvor.notebook import executed, live, record

from tests import told, world
from tests.world import World


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds_of_tests: None) -> World:
    """A world whose data is damaged, which kernels can reach."""
    made = world.make(tmp_path / "world")
    for name, value in world.environment(made.root).items():
        monkeypatch.setenv(name, value)
    site = tmp_path / "site"
    site.mkdir()
    paths = [str(Path(__file__).parents[2] / "lib"), str(Path(__file__).parents[2])]
    (site / "sitecustomize.py").write_text(
        f"import sys; sys.path[:0] = {paths!r}\nfrom tests import world; world.use_kinds()\n"
        # papermill would build a grammar for more than a second, which nothing here asks for (see executed.execute)
        "sys.modules['rfc3987_syntax'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    made.damage()
    return made


def folders(made: World) -> list[Path]:
    return [journal.folder for journal in made.journals()]


def papermill(made: World, output: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    """papermill's own command."""
    given = [word for name, value in parameters.items() for word in ("-r", name, value)]
    argv = [sys.executable, "-m", "papermill", str(executed.template()), str(output), "--no-progress-bar", *given]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, cwd=made.root)


# ------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("namespace", "said"),
    [
        ({"sevice": "orders"}, "sevice: the notebook has no such parameter; did you mean service?"),
        ({"zzz": 1}, "zzz: the notebook has no such parameter."),
        ({"service": 12}, "service: 12 is not text."),
        ({"approve": 1e300}, "approve: 1e+300 is not text."),
        ({"record": "yes"}, "record: 'yes' is not True or False."),
        ({"service": None}, "service: None is not text."),
    ],
)
def test_a_parameter_that_is_unknown_or_wrong_is_named(namespace: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        notebook.read_parameters(namespace)
    assert caught.value.safe == "nothing was changed"


def test_what_ipython_and_people_name_is_theirs() -> None:
    ipython = {"In": [""], "Out": {}, "_": 1, "_ih": [], "notebook": notebook, "exit": exit}
    assert notebook.read_parameters({**ipython, "service": " orders "})["service"] == "orders"
    walked = {"walk": object.__new__(notebook.Told), "my_own": 5}
    assert notebook.read_parameters({**ipython, **walked})["record"] is False


def test_the_notebook_offers_the_parameters_that_its_code_knows() -> None:
    namespace: dict[str, Any] = {}
    cells = json.loads(executed.template().read_bytes())["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if cell["metadata"].get("tags") == ["parameters"]]
    exec(source, namespace)  # noqa: S102  the notebook is ours
    del namespace["__builtins__"]
    assert set(namespace) == set(notebook.PARAMETERS)
    assert notebook.read_parameters(namespace)["platform"] == ""


@pytest.mark.parametrize(("given", "said"), [({}, "service: which one?"), ({"record": True}, "no incident is named")])
def test_what_is_missing_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        notebook.open(given)


def test_an_unknown_parameter_is_refused_before_anything_runs(broken: World) -> None:
    with pytest.raises(UsageError, match="did you mean service"):
        record.run_notebook({"serivce": "things", "approve": "yes"})
    assert folders(broken) == []


def test_papermill_only_warns_of_an_unknown_parameter_and_the_notebook_refuses(broken: World, tmp_path: Path) -> None:
    done = papermill(broken, tmp_path / "out.ipynb", service="things", platform="world", approve="yes", sorce="b1")
    assert done.returncode == 1
    assert "UsageError" in done.stderr and "did you mean source?" in (tmp_path / "out.ipynb").read_text()
    assert folders(broken) == [] and broken.live == world.BAD


# ------------------------------------------------------------------------------------------------ carried out


def test_papermill_carries_an_incident_out(broken: World, capfd: pytest.CaptureFixture[str]) -> None:
    given = {"service": "things", "platform": "world", "source": "", "at": "", "approve": "yes"}
    assert record.run_notebook(given) == 0
    assert (broken.live, broken.sign) == (world.GOOD, "127.0.0.1")
    assert [letter.split()[0] for letter in broken.letters] == ["declared", "recovered"]
    (folder,) = folders(broken)
    assert {path.name for path in folder.iterdir()} == {
        "journal.jsonl", "record.ipynb", "record.html", "carried-out.ipynb",
    }  # fmt: skip
    assert stat.S_IMODE((folder / record.CARRIED_OUT).stat().st_mode) == 0o600
    said = capfd.readouterr().out
    assert "done   store: stage side-folder" in said and "things is back." in said and "the record: " in said

    before = (folder / "journal.jsonl").read_bytes()
    assert record.run_notebook(given) == 0, "a second time there is nothing to do"
    assert (folder / "journal.jsonl").read_bytes() == before
    assert len(folders(broken)) == 1


def test_papermills_own_command_takes_the_hash_of_the_plan(broken: World, tmp_path: Path) -> None:
    approve = broken.session().plan().hash
    refused = papermill(broken, tmp_path / "a.ipynb", service="things", platform="world", approve="0123456789ab")
    assert refused.returncode == 1 and "is not the hash of this plan" in refused.stderr
    assert folders(broken) == []
    done = papermill(broken, tmp_path / "b.ipynb", service="things", approve=approve)  # whose platform is meant
    assert done.returncode == 0, done.stderr[-2000:]
    assert broken.live == world.GOOD
    (approved,) = broken.journals()[0].of("approved")
    assert approved["hash"] == approve and "by the notebook's parameter" in approved["how"]


def test_papermill_without_an_approval_begins_nothing_and_says_how_to_approve(broken: World, tmp_path: Path) -> None:
    """It began an incident, and ended with a cell to run that nobody could run."""
    refused = papermill(broken, tmp_path / "a.ipynb", service="things", platform="world")
    approve = broken.session().plan().hash
    assert refused.returncode == 1 and folders(broken) == []
    assert refused.stderr.strip().splitlines()[-1].startswith("HINT: ") and f"-r approve {approve};" in refused.stderr
    assert f"Plan hash: {approve}" in (tmp_path / "a.ipynb").read_text()


def test_the_exit_code_is_that_of_the_error(broken: World, capfd: pytest.CaptureFixture[str]) -> None:
    (broken.store / "backups/b1/data").write_text(world.BAD)
    assert record.run_notebook({"service": "things", "platform": "world", "approve": "yes"}) == 6
    assert broken.live == world.BAD
    (folder,) = folders(broken)
    assert "verify did not pass" in capfd.readouterr().err
    assert "verify did not pass" in (folder / record.CARRIED_OUT).read_text()
    page = (folder / record.PAGE).read_text()
    assert "the recovery is not finished" in page and "Traceback" not in page


def test_a_kernel_that_dies_is_told(broken: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site" / "ipykernel_launcher.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert record.run_notebook({"service": "things", "platform": "world", "approve": "yes"}) == 3
    assert "HINT: the same command again" in capfd.readouterr().err


def test_a_secret_among_the_parameters_is_masked(tmp_path: Path) -> None:
    path = tmp_path / "out.ipynb"
    path.write_text(
        json.dumps({"metadata": {"papermill": {"parameters": {"source": "https://me:hunter2@host/o.sql"}}}})
    )
    assert b"hunter2" not in executed.masked(path) and b"[secret]" in executed.masked(path)


# ------------------------------------------------------------------------------------------------ walked through


class Kernel:
    """A kernel in which cells are run one by one, as JupyterLab does."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client

    def run(self, source: str) -> tuple[str, str, list[str]]:
        """The words that a cell shows, the name of the error that ended it, and the kinds of its messages."""
        sent = self.client.execute(source)
        words, error, kinds = [], "", []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != sent:
                continue
            content, kind = message["content"], message["msg_type"]
            kinds.append(kind)
            if kind in ("display_data", "update_display_data"):
                assert set(content["data"]) == {"text/html", "text/plain"}
                words.append(content["data"]["text/plain"])
            elif kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return "\n".join(words), error, kinds


@pytest.fixture
def kernel(broken: World) -> Iterator[Kernel]:
    manager = KernelManager(transport="ipc", ip=str(broken.root / "kernel"))
    manager.start_kernel(cwd=str(broken.root))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_in_jupyterlab_each_plan_is_shown_and_approved_before_its_act(broken: World, kernel: Kernel) -> None:
    shown, error, _ = kernel.run(
        'service = "things"; platform = "world"\nfrom salvor.notebook import cells\nwalk = cells.open(globals())'
    )
    assert not error and "Plan hash" in shown and folders(broken) == [], "looking writes nothing"
    assert "Bring a broken service back" in kernel.run('walk.explain("assess")')[0]
    assert "chosen" in kernel.run('walk.act("assess")')[0], "what plans no change needs no approval"

    shown, _, _ = kernel.run('walk.plan("isolate")')
    assert "unfence" in shown and "never done before" in shown
    (hash_,) = re.findall(r"Plan hash: ([0-9a-f]{12})", shown)
    shown, error, _ = kernel.run('walk.act("isolate")')
    assert error == "CannotError" and f'walk.act("isolate", approve="{hash_}")' in shown
    shown, error, _ = kernel.run('walk.act("isolate", approve="0123456789ab")')
    assert error == "PlanMovedError" and not (broken.store / "fence").exists()
    shown, error, kinds = kernel.run(f'walk.act("isolate", approve="{hash_}")')
    assert not error and (broken.store / "fence").exists()
    assert kinds.count("update_display_data") >= 2, "one output is updated while the change runs"

    shown, error, _ = kernel.run(f'walk.act("isolate", approve="{hash_}")')
    assert not error and "is the hash" not in shown, "a cell that is run twice finds its work done"

    (folder,) = folders(broken)
    assert record.run_notebook({"incident": folder.name, "approve": "yes"}) == 7, "held until the walk is finished"
    assert not (folder / record.CARRIED_OUT).exists(), "a run that did nothing leaves nothing"

    for step in ("restore", "verify", "reroute", "notify"):
        shown, error, _ = kernel.run(f'walk.plan("{step}")')
        hash_ = "".join(re.findall(r"Plan hash: ([0-9a-f]{12})", shown))
        shown, error, _ = kernel.run(f'walk.act("{step}", approve="{hash_}")')
        assert not error, shown
    assert broken.live == world.GOOD
    shown, error, _ = kernel.run("walk.finish()")
    assert not error and "the record: " in shown
    assert "met" in kernel.run("walk.measured()")[0]
    assert "passed" in kernel.run("walk.seal()")[0], "the chain of the journal"
    shown, error, _ = kernel.run("my_own = 5\nwalk = cells.open(globals())")
    assert not error and "Nothing is left to do" in shown, "what a person names is no parameter"


def test_who_opened_the_notebook_too_early_goes_on_with_the_incident_of_a_colleague(
    broken: World, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"service": "things", "platform": "world"}
    walk, other = notebook.open(given), notebook.open(given)
    other.finish()
    assert "Nothing is held by this notebook." in capsys.readouterr().out
    walk.act("assess")
    with pytest.raises(HeldError):
        other.act("assess")
    walk.finish()
    with pytest.raises(PlanMovedError, match="was begun meanwhile"):
        other.act("assess")
    other.act("assess")
    other.finish()
    (journal,) = broken.journals()
    assert len(journal.of("resumed")) == 1


@pytest.mark.parametrize("step", ["verify", "reroute"])
def test_a_cell_that_is_run_before_its_turn_wakes_nobody(broken: World, step: str) -> None:
    walk = notebook.open({"service": "things", "platform": "world"})
    with pytest.raises(NotProvenError, match=f"{step} cannot be done yet") as refused:
        walk.act(step)
    assert refused.value.hint == "run the cells above it first"
    assert folders(broken) == [] and broken.letters == []


def test_an_error_in_a_cell_is_words_and_no_traceback(kernel: Kernel) -> None:
    sent = kernel.client.execute(
        'service = "nothing"; platform = "world"\nfrom salvor.notebook import cells\ncells.open(globals())'
    )
    while True:
        try:
            message = kernel.client.get_iopub_msg(timeout=30)
        except queue.Empty:
            pytest.fail("the cell raised nothing")
        if message["msg_type"] == "error" and message["parent_header"]["msg_id"] == sent:
            break
    said = message["content"]["traceback"]  # what papermill says on the terminal too
    assert said[0].startswith("UsageError: ") and "has no service 'nothing'" in said[0]
    assert said[-1].startswith("HINT: ") and not [line for line in said if "File " in line]
    assert "has no service 'nothing'" in message["content"]["evalue"]


def test_what_goes_on_beside_is_under_way_where_it_happens_and_unfinished_in_its_record(tmp_path: Path) -> None:
    teller = told.Teller(tmp_path / "20261121T003300Z-orders-aaaa")
    teller.line("step", step="notify", phase="begun", planned=1)
    teller.line("intent", step="notify", key=told.DECLARED.key, change=told.DECLARED.to_json()).journal.close()
    runs = story.read(teller.folder).steps
    assert "under way" in pages.section("happened", runs=runs, is_live=True)
    assert "unfinished" in pages.section("happened", runs=runs)


def test_a_message_may_end_when_the_next_step_has_begun(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = live.Progressing()
    watcher.step("notify", "")
    watcher.begun(told.DECLARED)
    watcher.step("isolate", "")
    watcher.begun(told.FENCE)
    watcher.ended(told.DECLARED, "done", 0.4, "")
    watcher.ended(told.FENCE, "done", 0.1, "")
    watcher.step("restore", "")
    watcher.begun(told.STAGE)
    assert list(watcher._changes) == [told.STAGE.key], "what has ended is not shown again"


# ------------------------------------------------------------------------------------------------ after the fact


def test_after_the_fact_nothing_is_changed_and_no_system_is_contacted(
    broken: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = broken.root / "incidents" / "20261121T003300Z-orders-aaaa"
    told.usual(folder).journal.close()
    shutil.rmtree(broken.root / "inventory")  # nothing says any more where a system is
    before = (folder / "journal.jsonl").read_bytes()
    walk = notebook.open({"incident": folder.name})
    assert isinstance(walk, notebook.Told)
    capsys.readouterr()
    walk.explain("restore")
    walk.plan("restore")
    walk.act("restore", approve="0123456789ab")
    walk.finish()
    shown = capsys.readouterr().out
    assert "pgBackRest full backup of 3 min ago" in shown and "after 3 min 04 s" in shown
    assert (folder / "journal.jsonl").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["journal.jsonl"]


def test_each_of_two_sections_of_one_step_shows_its_own(broken: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken.root / "incidents" / "20261121T003300Z-orders-aaaa"
    told.usual(folder).journal.close()
    walk = notebook.open({"incident": folder.name})
    capsys.readouterr()
    walk.plan("notify")
    first = capsys.readouterr().out
    walk.plan("notify", again=True)
    second = capsys.readouterr().out
    assert "declared" in first and "recovered" not in first
    assert "recovered" in second and "declared" not in second


def test_an_open_incident_is_shown_when_asked_for(broken: World) -> None:
    folder = broken.root / "incidents" / "20261121T003300Z-orders-aaaa"
    told.Teller(folder).assess().journal.close()
    walk = notebook.open({"incident": folder.name, "record": True})
    assert isinstance(walk, notebook.Told) and walk.story.state == "open"
    assert len(Journal.read(folder).lines) == walk.story.lines
