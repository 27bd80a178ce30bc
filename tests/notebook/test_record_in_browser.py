"""The page as a real browser shows it. Skipped where no Chromium is found; `./start test` installs one."""

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from salvor import clock, trends
from salvor.journal import brief
from salvor.notebook import record
from salvor.trends import show as show_trends

from tests import past, told

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: apt-get install chromium")

MEASURE = """
const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
const rgb = colour => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
const light = colour => rgb(colour).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const isOpaque = colour => rgb(colour).length === 3 || rgb(colour)[3] > 0.5;
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const own = getComputedStyle(e).backgroundColor;
    if (isOpaque(own)) return own;
  }
  return 'rgb(255, 255, 255)';
};
const hasWords = e => !e.closest('script, style, title, desc') && !e.classList.contains('inside')
  && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
const contrast = e => {
  const style = getComputedStyle(e);
  const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(behind(e))];
  return [e.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
};
const drawing = document.querySelector('svg')?.getBoundingClientRect() ?? { left: 0, top: 0, width: 1000 };
const inside = ([l, t, r, b]) => [l - drawing.left, t - drawing.top, r - drawing.left, b - drawing.top];
parent.postMessage(JSON.stringify({
  width: innerWidth, scroll: document.documentElement.scrollWidth, title: document.title,
  background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  texts: [...document.querySelectorAll('svg text')].filter(t => t.textContent)
    .map(t => [t.textContent, ...inside(box(t)).map(v => v * 1000 / drawing.width)]),
  faint: [...document.querySelectorAll('body *')].filter(hasWords).map(contrast).filter(([, ratio]) => ratio < 4.5),
  spilt: [...document.querySelectorAll('.facts time')].filter(t => box(t)[2] > box(t.parentElement)[2])
    .map(t => t.textContent),
  tables: [...document.querySelectorAll('.scroll')].map(s => s.getBoundingClientRect().right),
}), '*');
"""
FRAME = """<!DOCTYPE html><html lang="en"><title>frame</title><body>
<script>onmessage = message => document.body.dataset.measured = message.data</script>
<iframe src="{name}" style="border: 0; width: {width}px; height: 900px"></iframe>
"""


def chromium(page: Path, *options: str, dark: bool = False) -> str:
    """Open a page, and return what Chromium prints."""
    assert CHROMIUM
    argv = [CHROMIUM, "--headless=new", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={page.parent}/profile"]
    argv += ["--no-sandbox"] if os.geteuid() == 0 else []
    argv += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*argv, *options, page.as_uri()], capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of incident, and one of trends."""
    root = tmp_path_factory.mktemp("pages")
    made = {}
    scenes: dict[str, Callable[[Path], told.Teller]] = {
        "usual": told.usual,
        "eventful": told.eventful,
        "crowded": told.crowded,
        "hostile": lambda folder: told.hostile(folder, lines=600),
    }
    for name, write in scenes.items():
        folder = root / f"20261121T003300Z-orders-{name[:4]}"
        write(folder).journal.close()
        made[name] = folder / "record.html"
        made[name].write_text(record.page(folder))
    folder = root / "20261121T003300Z-orders-eeee"
    told.eventful(folder).journal.close()
    assert record.make(folder) == ""
    for number in range(40):
        past.write(root / "past", past.NOW - number * timedelta(days=25), blind=30.0, back=60.0 * number)
    with clock.use(lambda: past.NOW):
        found = trends.reckon(brief.newest_first(root / "past"), "world", {"orders": 99.9})
        made["trends"] = root / "past" / "trends.html"
        made["trends"].write_text(show_trends.page(found))
    return made | {"executed": folder / record.PAGE}


def measured(page: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What a script measures in the page. Its policy, which lets no script run, is left out for this."""
    html, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert policies == 1
    copy, frame = page.with_name(f"measured-{width}.html"), page.with_name(f"frame-{width}.html")
    copy.write_text(html.replace("</body>", f"<script>{MEASURE}</script></body>"))
    frame.write_text(FRAME.format(name=copy.name, width=width))  # no window is narrower than 500 pixels
    dom = chromium(frame, "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom", dark=dark)
    (found,) = re.findall(r'data-measured="([^"]*)"', dom)
    values: dict[str, Any] = json.loads(unescape(found))
    assert values["width"] == width
    return values


def pixel(png: bytes) -> tuple[int, ...]:
    """The first pixel (red, green, blue) of a PNG: the upper left corner, which is the page's background."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    depth, colours = png[24], png[25]
    assert depth == 8 and colours in (2, 6)
    data, place = b"", 8
    while place < len(png):
        (length,), kind = struct.unpack(">I", png[place : place + 4]), png[place + 4 : place + 8]
        data += png[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += 12 + length
    row = zlib.decompress(data)
    return tuple(row[1:4])  # in the first pixel every filter of PNG adds nothing


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["executed", "trends"])
def test_every_word_can_be_read_in_light_and_dark(pages: dict[str, Path], name: str, dark: bool) -> None:
    values = measured(pages[name], 1280, dark)
    assert values["faint"] == [], "text against what is behind it, WCAG 2 AA"
    assert values["background"] == ("rgb(15, 19, 23)" if dark else "rgb(246, 247, 249)")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["executed", "hostile", "trends"])
def test_nothing_runs_out_of_the_page(pages: dict[str, Path], name: str, width: int) -> None:
    values = measured(pages[name], width)
    assert values["scroll"] <= width and values["spilt"] == []
    assert values["tables"] and max(values["tables"]) <= width, "what is wider scrolls in its own frame"


@pytest.mark.parametrize("name", ["usual", "eventful", "crowded"])
def test_no_text_of_the_picture_lies_over_another_in_real_letters(pages: dict[str, Path], name: str) -> None:
    texts = measured(pages[name], 1280)["texts"]
    assert len(texts) > 15
    for number, (words, left, top, right, bottom) in enumerate(texts):
        assert left >= -1 and right <= 1001, words
        for other, left2, top2, right2, bottom2 in texts[number + 1 :]:
            apart = right <= left2 or right2 <= left or bottom <= top2 + 4 or bottom2 <= top + 4
            assert apart, f"{words!r} lies over {other!r}"


def test_the_page_follows_the_reader_into_the_dark(pages: dict[str, Path]) -> None:
    seen = {}
    for dark in (False, True):
        shot = pages["usual"].with_name(f"shot-{dark}.png")
        chromium(pages["usual"], "--window-size=1280,2400", f"--screenshot={shot}", dark=dark)
        seen[dark] = pixel(shot.read_bytes())
    assert min(seen[False]) > 230 and max(seen[True]) < 40, seen


def test_hostile_output_runs_nothing_even_where_scripts_may_run(pages: dict[str, Path]) -> None:
    title = measured(pages["hostile"], 1280)["title"]
    assert "pwned" in title and title != "pwned", "it is shown, and did not run"


def test_it_prints(pages: dict[str, Path]) -> None:
    pdf = pages["usual"].with_name("record.pdf")
    chromium(pages["usual"], "--no-pdf-header-footer", f"--print-to-pdf={pdf}", dark=True)
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-") and len(content) > 20_000
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12
    assert re.search(rb"/MediaBox\s*\[0 0 59[45][.\d]* 84[12][.\d]*\]", content), "A4"
