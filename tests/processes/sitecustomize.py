"""For a real `inv` process of the tests, by PYTHONPATH: it finds the kinds of tests/kinds beside the real ones."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "lib")]

from tests import world  # noqa: E402 - the path comes first

world.use_kinds()
