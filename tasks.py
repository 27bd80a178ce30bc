"""What `inv` offers: the commands in lib/salvor/commands, each file of which names its tasks."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "lib"))

from salvor.commands.everything import namespace as namespace

gc.set_threshold(20_000)  # a start makes many objects and no garbage: looking for some took a twelfth of it
