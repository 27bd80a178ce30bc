"""What `inv` offers: the commands in lib/salvor/commands, each file of which names its tasks."""

from __future__ import annotations

import sys
from pathlib import Path

from invoke.collection import Collection

sys.path.insert(0, str(Path(__file__).parent / "lib"))

from salvor.commands import checklist, evidence, hosts, incidents, recovery, sandbox, schedule, status, upkeep, watch

namespace = Collection(
    *(
        task
        for theme in (recovery, upkeep, schedule, watch, status, checklist, evidence, incidents, hosts, sandbox)
        for task in theme.TASKS
    )
)
