"""What `inv` offers: the commands in lib/salvor/commands, each file of which names its tasks."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "lib"))

from salvor.commands.everything import namespace as namespace
from salvor.commands.mistyped import refuse

gc.set_threshold(20_000)  # a start makes many objects and no garbage: looking for some took a twelfth of it

if {"inv", "invoke"} & {Path(sys.argv[0]).name, Path(sys.argv[0]).parent.name}:  # not where it is only imported
    refuse(sys.argv[1:])
