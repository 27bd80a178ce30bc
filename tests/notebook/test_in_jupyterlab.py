"""A notebook in a real JupyterLab in a real browser, cell by cell. `python -m tests.lab NOTEBOOK` runs the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import browser, lab, told

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is here: apt-get install chromium")


def test_a_review_is_filled_cell_by_cell(tmp_path: Path) -> None:
    assert (lab.LIB / "salvor").is_dir(), "a module of ours would stand before Python's own secrets"
    incident = "20261121T003300Z-orders-aaaa"
    told.eventful(tmp_path / incident).journal.close()
    given = {"incident": incident, "actions": "mend the alert @lee"}
    shown = lab.run("review", given, {"SALVOR_INCIDENTS": str(tmp_path)})
    assert not [each for each in shown if each.failed], shown
    words = {each.source.splitlines()[-1]: each.words for each in shown}
    assert "1 h 17 min" in words['this.show("summary")']
    assert "mend the alert" in words['this.show("actions")'] and "lee" in words['this.show("actions")']
    assert "pager.example.com does not answer" in words['this.show("bad")']
    assert "# Review: Orders came back" in words['this.show("markdown")']
    assert all(each.words.strip() for each in shown if each.source.startswith("this.show"))
