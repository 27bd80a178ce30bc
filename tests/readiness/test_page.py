"""The notebook and the page, made by papermill in a real kernel; and that no secret is in any of it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from salvor import clock, prometheus, secrets
from salvor.errors import CannotError, NotProvenError
from salvor.notebook import executed, paper
from salvor.readiness import paper as readiness_paper
from salvor.readiness import telling
from salvor.readiness.report import Report
from salvor.show import Plain

from tests import page_reader, past
from tests.browser import CHROMIUM, chromium

PLATFORM = """
title: Shops
systems:
  api: {{kind: application, service: salvor-nothing-of-this-name}}
  people: {{kind: outbox, channels: {{oncall: {{url: "env:SALVOR_TEST_URL", severities: [critical]}}}}}}
  orders-db:
    kind: postgres
    database: orders
    members: [{{name: a, address: 127.0.0.1, port: {port}, data: /nonexistent/data}}]
    side_port: 1
    programs: /nonexistent
    operator: {{user: salvor, password: "env:SALVOR_TEST_PASSWORD"}}
    dumps: "{root}/dumps"
services:
  orders: {{rto: 15m, rpo: 30s, availability: 99.9, systems: [orders-db], messages: people}}
  shop: {{title: The shop, rto: 15m, rpo: 30s, depends_on: [orders], applications: [api]}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def set_up(base: Path, patch: pytest.MonkeyPatch) -> None:
    """A platform of real kinds, nothing of which runs, and incidents of it."""
    (base / "inventory").mkdir()
    (base / "inventory" / "plain.yaml").write_text(PLATFORM.format(root=base, port=free_port()))
    for name, value in (
        ("SALVOR_INVENTORY", str(base / "inventory")),
        ("SALVOR_INCIDENTS", str(base / "incidents")),
        ("SALVOR_TEST_URL", "json://127.0.0.1/hook"),
        ("SALVOR_TEST_PASSWORD", "a-password-of-tests"),
    ):
        patch.setenv(name, value)
    for number in range(30):
        at = clock.now() - timedelta(days=20 * number + 1)
        purpose = "drill" if number % 2 else "incident"
        past.write(
            base / "incidents",
            at,
            platform="plain",
            purpose=purpose,
            blind=30.0,
            back=60.0 * number + 20,
            way="physical",
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.mktemp("readiness")
        set_up(base, patch)
        yield base


@pytest.fixture(scope="module")
def folder(base: Path) -> Path:
    """The report as `inv readiness --report` writes it."""
    with pytest.raises(NotProvenError):
        telling.run("plain", "", Plain(), report=True)
    return base / "incidents" / "readiness-plain"


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / readiness_paper.PAGE).read_text()


def test_the_report_is_three_private_files(folder: Path) -> None:
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("seen.json", "readiness.ipynb", "readiness.html"), 0o600
    )


def test_the_notebook_was_executed_without_errors(folder: Path) -> None:
    cells = json.loads((folder / readiness_paper.NOTEBOOK).read_bytes())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} == {"display_data"}
    shown = [cell["outputs"] for cell in cells if "".join(cell["source"]).startswith("readiness.show")]
    assert len(shown) > 5 and all(shown)


def test_the_page_is_valid_and_readable_without_seeing_it(page: str) -> None:
    root = page_reader.read(page)
    assert page_reader.faults(root) == []
    assert page_reader.texts(next(root.iter("h1"))) == "Shops: 2 not ready"
    headings = [page_reader.texts(each) for each in root.iter("h2")]
    assert headings == [
        "Services", "Why, and what to do", "Where the expected times come from", "Targets met, over time",
        "Detection and recovery, over time", "Availability", "How long the steps take",
    ]  # fmt: skip
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 4


_AS_OF_O4O = """(() => {
    const [backup, proof, rto, rpo, needs] = [...document.querySelectorAll("tbody tr")[0].cells].slice(2);
    backup.textContent = "archive o4o_backup_20261122_123527.tar.gz, 36 min 40 s old";
    proof.innerHTML = "7 min ago, incident <span class=evidence><code>20261122T130427Z-media-38b3</code></span>";
    rto.innerHTML = "8 min 07 s<span class=evidence>at worst 16 min 06 s</span>";
    rpo.innerHTML = "36 min 40 s<span class=evidence>24 h 00 min allowed</span>";
    needs.textContent = "database (at risk), settings (at risk), authentication (not ready), media (ready)";
    const box = needs.closest(".scroll");
    return box.scrollWidth - box.clientWidth;
})()"""


_LINES_OF_A_NARROW_VERDICT = """(() => {
    const chip = document.querySelector("td .chip");
    chip.textContent = "passed";
    chip.style.width = "min-content";
    return Math.floor(chip.offsetHeight / parseFloat(getComputedStyle(chip).lineHeight));
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: apt-get install chromium")
def test_a_service_with_long_names_is_seen_whole(folder: Path, tmp_path: Path) -> None:
    with chromium(tmp_path) as seen:
        seen.open((folder / readiness_paper.PAGE).as_uri())
        assert seen.evaluate(_AS_OF_O4O) == 0
        assert seen.evaluate(_LINES_OF_A_NARROW_VERDICT) == 1  # its dot stands before its word, not above it


def test_the_page_asks_no_network_and_runs_no_script(page: str) -> None:
    assert "default-src 'none'" in page
    assert re.findall(r"(?:https?:|file:|data:|//)[^\s\"']*", re.sub(r'xmlns="[^"]*"|data:;', "", page)) == []


def test_the_page_says_why_and_what_next(page: str) -> None:
    text = page_reader.texts(page_reader.read(page))
    for words in (
        "orders-db has no usable backup", "inv backup --service=orders --platform=plain",
        "it depends on orders, which is not ready", "api is down", "The shop", "99.9", "median of 20",
        "changed nothing",
    ):  # fmt: skip
        assert words in text, words


def test_without_a_kernel_the_page_is_the_same(folder: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "DEADLINE", 0.1)
    assert readiness_paper.PAPER.make(folder).startswith("readiness.ipynb: ")
    html = (folder / readiness_paper.PAGE).read_text()
    root = page_reader.read(html)
    assert page_reader.faults(root) == []
    assert "this page was made without it" in html
    headings = [page_reader.texts(each) for each in root.iter("h2")]
    assert headings == [page_reader.texts(each) for each in page_reader.read(page).iter("h2")]


def test_a_service_has_a_report_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    monkeypatch.setattr(paper, "DEADLINE", 0.1)
    with pytest.raises(CannotError, match="could not be made"):
        readiness_paper.make(readiness_paper.look("plain", "orders"), Plain())
    root = page_reader.read((folder / "orders" / readiness_paper.PAGE).read_text())
    assert page_reader.texts(next(root.iter("h1"))) == "Shops: 1 not ready"
    assert "plain, orders" in page_reader.texts(next(root.iter("title")))
    assert "shop" not in page_reader.texts(next(root.iter("main"))), "its trends are its own too"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_notebook_looks_by_itself(base: Path, tmp_path: Path) -> None:
    executed.execute({"service": "orders"}, tmp_path / "out.ipynb", "readiness")
    cells = json.loads((tmp_path / "out.ipynb").read_bytes())["cells"]
    (services,) = [cell for cell in cells if "services" in "".join(cell["source"])]
    words = "".join(services["outputs"][0]["data"]["text/plain"])
    assert "orders" in words and "not ready" in words
    assert "shop" not in words, "only what was asked for"


def test_the_stored_notebook_is_clean() -> None:
    notebook = json.loads(executed.template("readiness").read_bytes())
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook["cells"])
    assert notebook["metadata"]["language_info"] == {"name": "python"}


# ------------------------------------------------------------------------------------------------ no secret

_SECRET = st.text(st.sampled_from("abcXYZ0189-_+=%~ \"'<&\\ü"), min_size=8, max_size=24).map(lambda text: f"Q7{text}7Q")
_URLS = (
    "json://user:{}@127.0.0.1/hook",
    "slack://{}",
    "nonsense://{}",
    "tgram://123456789:{}/42",
    "postgres://app:{}@127.0.0.1/orders",
    "{}",
)


def artefacts(found: Report, folder: Path, said: str) -> str:
    """Everything that readiness writes anywhere."""
    figures = prometheus.text(telling.metrics(found))
    data = json.dumps(found.to_json(), ensure_ascii=False)
    return "\n".join([said, *telling.lines(found), figures, data, *(path.read_text() for path in folder.rglob("*.*"))])


@settings(max_examples=12, deadline=None)
@given(secret=_SECRET, url=st.sampled_from(_URLS))
def test_no_planted_secret_is_in_any_artefact(base: Path, secret: str, url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "DEADLINE", 0.01)  # without a kernel: the page is made of the same sections
        patch.setenv("SALVOR_TEST_URL", url.format(secret))
        patch.setenv("SALVOR_TEST_PASSWORD", secret)
        seen = readiness_paper.look("plain")
        with pytest.raises(CannotError) as raised:
            readiness_paper.make(seen, Plain())
        everything = artefacts(seen.report, base / "incidents" / "readiness-plain", str(raised.value))
    assert "orders-db" in everything
    for form in secrets._forms(secret):
        assert form not in everything
