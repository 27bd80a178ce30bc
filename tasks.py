"""What `inv` offers: the commands in lib/salvor/commands, each file of which names its tasks."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from invoke.collection import Collection

sys.path.insert(0, str(Path(__file__).parent / "lib"))

from salvor.commands import checklist, evidence, hosts, incidents, recovery, sandbox, schedule, status, upkeep, watch

gc.set_threshold(20_000)  # a start makes many objects and no garbage: looking for some took a twelfth of it

namespace = Collection(
    *(
        task
        for theme in (recovery, upkeep, schedule, watch, status, checklist, evidence, incidents, hosts, sandbox)
        for task in theme.TASKS
    )
)
