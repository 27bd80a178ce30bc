import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from salvor import durable, pages
from salvor.journal import story
from salvor.notebook import executed, paper, record

from tests import page_reader, told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An incident with its record, made by papermill in a real kernel."""
    folder = tmp_path_factory.mktemp("incidents") / "20261121T003300Z-orders-bbbb"
    told.eventful(folder).journal.close()
    assert record.make(folder) == ""
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / record.PAGE).read_text()


def of(tmp_path: Path, write: str) -> Path:
    """The folder of an incident without a record."""
    folder = tmp_path / "20261121T003300Z-orders-aaaa"
    getattr(told, write)(folder).journal.close()
    return folder


def headings(page: str) -> list[str]:
    return [page_reader.texts(each) for each in page_reader.read(page).iter("h2")]


def test_the_record_is_two_private_files_and_nothing_else(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["journal.jsonl", "record.html", "record.ipynb"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_notebook_is_executed_without_errors_and_shows_every_section(folder: Path) -> None:
    cells = json.loads((folder / record.NOTEBOOK).read_bytes())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds == {"display_data"}, "no errors, nothing printed"
    silent = ["".join(cell["source"]) for cell in code if not cell["outputs"]]
    assert [source for source in silent if source.startswith("walk.")] == ["walk.finish()"], "there is nothing to end"
    for output in (output for cell in code for output in cell["outputs"]):
        assert set(output["data"]) == {"text/html", "text/plain"}


def test_the_page_is_valid_and_readable_without_seeing_it(page: str) -> None:
    assert page_reader.faults(page_reader.read(page)) == []


def test_the_page_asks_no_network_and_runs_no_script(page: str) -> None:
    assert "default-src 'none'" in page
    assert re.findall(r"(?:https?:|file:|data:|//)[^\s\"']*", re.sub(r'xmlns="[^"]*"|data:;', "", page)) == []
    assert "@import" not in page and "url(" not in page.replace("url(#hatch)", "")


def test_the_page_tells_the_whole_incident(page: str) -> None:
    text = page_reader.texts(page_reader.read(page))
    for words in (
        "Orders came back, and the recovery was then undone",
        "1 h 17 min", "target missed", "lee@ops2", "orders-db: unfence", "a message that was read cannot be unread",
        told.IDENTITY, told.STAGED, "the standby has the same damage", "No space left on device", "ns2.example.com",
        "Bring a broken service back", "kim's laptop lost its power", "recovered, undone, closed",
        "closed, and not signed",
    ):  # fmt: skip
        assert words in text, words


def test_what_was_measured_comes_first(page: str) -> None:
    assert headings(page)[:3] == ["What was measured", "Timeline", "Assess"]
    assert "Finish" not in headings(page)


def test_each_section_explains_itself(page: str) -> None:
    text = page_reader.texts(page_reader.read(page))
    assert "Use it first, and use it when you do not know what is wrong." in text, "the runbook's docstring"
    assert text.count("Stage the chosen backup beside what is live") == 1, "the step's docstring"


def test_every_number_of_the_picture_stands_in_the_table_beside(page: str) -> None:
    root = page_reader.read(page)
    (table,) = [each for each in root.iter("table") if "numbers of the timeline" in page_reader.texts(each)]
    drawn = [page_reader.texts(each) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for figure in re.findall(r"· ([\d.]+ (?:s|min \d\d s))", " ".join(drawn)):
        assert figure in page_reader.texts(table)


def test_a_second_record_replaces_the_first_whole(folder: Path, page: str) -> None:
    inode = (folder / record.PAGE).stat().st_ino
    before = (folder / record.NOTEBOOK).read_bytes()
    durable.replace(folder / record.PAGE, record.page(folder).encode())
    assert (folder / record.PAGE).stat().st_ino != inode, "a reader of the old one keeps the old one"
    assert (folder / record.NOTEBOOK).read_bytes() == before


@pytest.mark.parametrize("name", ["usual", "eventful", "crowded"])
def test_without_a_kernel_the_page_is_the_same(tmp_path: Path, name: str, page: str) -> None:
    html = record.page(of(tmp_path, name), "", "")
    assert page_reader.faults(page_reader.read(html)) == []
    sections = [each for each in headings(page) if not each.startswith("Notify")]
    assert [each for each in headings(html) if not each.startswith("Notify")] == sections


def test_a_change_of_which_nobody_saw_the_end_is_not_nothing(tmp_path: Path) -> None:
    """Above `Not finished: orders-db: fence` stood that nothing was changed."""
    folder = tmp_path / "20261121T003300Z-orders-cccc"
    teller = told.Teller(folder).assess().line("step", step="isolate", phase="begun", planned=1)
    teller.line("intent", step="isolate", change=told.FENCE.to_json()).journal.close()
    page = record.page(folder, "", "")
    assert "what was begun may have changed something" in page
    assert "nothing was changed" not in page


def test_a_kernel_that_never_answers_costs_the_notebook_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = of(tmp_path, "usual")
    monkeypatch.setattr(paper, "DEADLINE", 0.3)
    problem = record.make(folder)
    assert problem.startswith("record.ipynb: ") and "\n" not in problem
    html = (folder / record.PAGE).read_text()
    assert "this page was made without it" in html
    assert page_reader.faults(page_reader.read(html)) == []
    assert not (folder / record.NOTEBOOK).exists()


def test_a_kernel_that_dies_costs_the_notebook_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = of(tmp_path, "usual")
    broken = tmp_path / "dead"
    (broken / "ipykernel").mkdir(parents=True)
    (broken / "ipykernel" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=":")
    assert record.make(folder).startswith("record.ipynb: ")
    assert "Orders came back after" in (folder / record.PAGE).read_text()


def test_what_cannot_be_written_is_said_and_never_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = of(tmp_path, "usual")
    monkeypatch.setattr(paper, "DEADLINE", 0.1)
    (folder / record.PAGE).mkdir()
    assert "record.html: " in record.make(folder)
    assert "record.html: " in record.make(tmp_path / "20261121T003300Z-nothing-0000")


def test_a_full_disk_leaves_the_old_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = of(tmp_path, "usual")
    durable.replace(folder / record.PAGE, b"the old one")
    code = (
        "import resource, sys; from pathlib import Path; from salvor.notebook import paper, record\n"
        "paper.DEADLINE = 0.1\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "print(record.make(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "record.html: " in done.stdout, done.stderr
    assert (folder / record.PAGE).read_bytes() == b"the old one"
    assert sorted(path.name for path in folder.iterdir()) == ["journal.jsonl", "record.html"], (
        "nothing half written stays"
    )


def test_hostile_output_stays_text(tmp_path: Path) -> None:
    folder = of(tmp_path, "hostile")
    html = record.page(folder)
    root = page_reader.read(html)
    assert page_reader.faults(root) == []
    assert "<script>document.title='pwned'</script>" in page_reader.texts(root), "shown as it was printed"
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert "{{ 7*7 }}" in page_reader.texts(root), "no template in it was filled in"
    assert "hunter2" not in html
    assert len(html) < 2_000_000, "10 MB of detail and 2,000 lines are shortened"
    assert "shortened; the journal has all 10,000,000 characters" in html
    assert f"the first {pages.MOST_ROWS} of 2" in html


@pytest.mark.parametrize(
    "text", ["<b>", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202eevil", "\x00", "\ud800", "a\x85b", "￾"]
)
def test_what_is_shown_is_text_and_nothing_else(text: str) -> None:
    html = pages.section("quiet", text=text)
    assert page_reader.faults(page_reader.read(f"<!DOCTYPE html><html lang=en><title>t</title><h1>x</h1>{html}")) == []
    html.encode()


def test_where_there_is_no_html_each_figure_stands_apart() -> None:
    row = '<tr><th>all</th><td>46 s<span class="evidence">worst 48 s</span></td></tr>'
    assert pages.plain(row) == "all  46 s worst 48 s"


def test_a_secret_in_a_line_is_masked(tmp_path: Path) -> None:
    told_ = told.Teller(tmp_path / "20261121T003300Z-orders-aaaa")
    told_.journal.close()
    read = story.read(told_.folder)
    read.title = "postgres://app:hunter2@db/orders password=hunter3"
    html = pages.section("summary", story=read)
    assert "hunter" not in html and html.count("[secret]") == 2


def test_importing_it_loads_no_notebook_machinery() -> None:
    heavy = "'papermill', 'nbconvert', 'nbformat', 'IPython', 'jinja2'"
    code = f"import sys, salvor.notebook.record; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_stored_notebook_is_clean() -> None:
    notebook = json.loads(executed.template().read_bytes())
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}, "nothing of the machine that it was written on"
