"""The page as HTML: one file that asks no network for anything, and is true also when nobody makes it any more.

It says when it was made, in words that need no script; by the reader's clock a small script says how long ago that
was, and turns it into a page that says that it is old. It is read again every 30 seconds: by the script, which the
reader can pause, or without one by the browser.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from salvor import clock, pages
from salvor.status.look import Report
from salvor.status.settings import Words
from salvor.status.states import Status, worst

REFRESH = 30
"""Seconds after which the page is read again."""
_KOREA = timezone(timedelta(hours=9), "KST")
_TEMPLATES = Path(pages.__file__).parent / "templates"

STATES: Mapping[Status, Words] = {
    Status.OPERATIONAL: Words(en="Operational", ko="정상"),
    Status.UNKNOWN: Words(en="Being checked", ko="확인 중"),
    Status.MAINTENANCE: Words(en="Maintenance", ko="점검 중"),
    Status.DEGRADED: Words(en="Degraded", ko="일부 장애"),
    Status.OUTAGE: Words(en="Outage", ko="장애"),
}
HEADLINES: Mapping[Status, Words] = {
    Status.OPERATIONAL: Words(en="All services are operational", ko="모든 서비스가 정상입니다"),
    Status.UNKNOWN: Words(en="We are checking some services", ko="일부 서비스의 상태를 확인하고 있습니다"),
    Status.MAINTENANCE: Words(en="Maintenance is under way", ko="서비스 점검이 진행되고 있습니다"),
    Status.DEGRADED: Words(
        en="Some services do not work as they should", ko="일부 서비스를 이용하는 데 불편이 있을 수 있습니다"
    ),
    Status.OUTAGE: Words(en="Some services are not available", ko="일부 서비스를 이용하실 수 없습니다"),
}

_SCRIPT = """
(function () {
  var page = document.documentElement, made = Date.parse(page.dataset.made), old = 1000 * page.dataset.old;
  var pause = document.getElementById("pause"), before = history.state || {};

  function age() {
    var passed = Date.now() - made;
    document.querySelectorAll(".minutes").forEach(function (each) { each.textContent = Math.floor(passed / 60000); });
    document.querySelectorAll(".ago").forEach(function (each) { each.hidden = passed < 0; });
    page.className = passed > old ? "old" : "";
  }
  function keep() {
    var here = document.activeElement || {};
    history.replaceState({paused: pause.checked, focus: here.id || here.href}, "");
  }
  function renew() {
    keep();
    location.reload();
  }
  function busy() {
    return pause.checked || document.hidden || !getSelection().isCollapsed;
  }
  function look() {
    if (busy()) return;
    if (location.protocol === "file:") return renew();
    fetch(location.href, {cache: "no-cache"}).then(function (answer) {
      return answer.ok ? answer.text() : "";
    }).then(function (text) {
      var found = /data-made="([^"]*)"/.exec(text);
      if (found && found[1] !== page.dataset.made && !busy()) renew();
    }).catch(function () {});
  }

  document.querySelectorAll(".scripted").forEach(function (each) { each.hidden = false; });
  document.querySelectorAll("a, input").forEach(function (each) {
    if (before.focus && before.focus === (each.id || each.href)) each.focus({preventScroll: true});
  });
  pause.checked = before.paused === true;
  pause.addEventListener("change", function () { keep(); look(); });
  document.addEventListener("visibilitychange", look);
  age();
  setInterval(age, 5000);
  setInterval(look, 1000 * page.dataset.refresh);
})();
"""
"""What readers look at is renewed where they are: scroll position (which a browser keeps over a reload) and focus stay,
and nothing moves while they pause it, mark text, or look elsewhere. A page that cannot be had, as without a network, is
never put in the place of one that is there; of a file that cannot be asked beforehand.
"""


def html(report: Report) -> str:
    """The whole page."""
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    overall = worst([row.status for row in report.rows])
    return pages.section(
        "page",
        template="status.html",
        report=report,
        overall=overall,
        headline=HEADLINES[overall],
        states=STATES,
        made=clock.write_time(report.as_of),
        old=old_after(report.every),
        refresh=REFRESH,
        utc=_utc,
        korea=_korea,
        took=_took,
        style=Markup((_TEMPLATES / "status.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
        script=Markup(_SCRIPT),  # noqa: S704  our own
        script_hash=f"sha256-{digest}",
    )


def old_after(every: float) -> float:
    """Seconds after which a page that is published `every` so many seconds is called old."""
    return 3 * every


def _utc(at: datetime) -> str:
    return f"{at:%d %b %Y, %H:%M} UTC".lstrip("0")


def _korea(at: datetime) -> str:
    return f"{at.astimezone(_KOREA):%Y년 %m월 %d일 %H:%M} KST".replace("년 0", "년 ").replace("월 0", "월 ")


def _took(began: datetime, ended: datetime) -> Words:
    """How long it was, in minutes, hours or days."""
    minutes = max(1, round((ended - began).total_seconds() / 60))
    hours, days = round(minutes / 60), round(minutes / 1440)
    if minutes < 120:
        return Words(en=f"{minutes} min", ko=f"{minutes}분")
    if hours < 48:
        return Words(en=f"{hours} h", ko=f"{hours}시간")
    return Words(en=f"{days} days", ko=f"{days}일")
