"""Pages under axe-core (https://github.com/dequelabs/axe-core) in a real browser, light and dark, wide and narrow.

    npm pack axe-core && tar xf axe-core-*.tgz
    python -m tests.accessibility package/axe.min.js PAGE...

Says each violation, and ends with 1 when one is serious or critical.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.browser import Page, chromium

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def violations(page: Page, axe: str, path: Path, copy: Path, *, dark: bool) -> list[dict[str, Any]]:
    """What axe-core finds in one page. The page's own policy lets no script run, and is left out for this."""
    copy.write_text(_POLICY.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
    page.dark(dark)
    page.open(copy.as_uri())
    page.evaluate(f"{axe};1")
    said: str = page.evaluate("axe.run().then(found => JSON.stringify(found.violations))")
    found: list[dict[str, Any]] = json.loads(said)
    return found


def main(arguments: list[str]) -> int:
    axe, *paths = map(Path, arguments)
    source, serious = axe.read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory(prefix="salvor-axe-", ignore_cleanup_errors=True) as temporary:
        for width in (1280, 420):
            with chromium(Path(temporary) / str(width), width) as page:
                for path in paths:
                    for dark in (False, True):
                        found = violations(page, source, path, Path(temporary) / "page.html", dark=dark)
                        serious += sum(each["impact"] in ("serious", "critical") for each in found)
                        print(f"{path}, {width} wide, {'dark' if dark else 'light'}: {len(found)} violations")
                        for each in found:
                            where = ", ".join(str(node["target"][0]) for node in each["nodes"][:3])
                            print(f"  {each['impact']}: {each['id']}: {each['help']}: {where}")
    return int(serious > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
