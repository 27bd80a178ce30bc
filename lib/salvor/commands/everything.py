"""All that `inv` offers, in the order in which it is listed."""

from __future__ import annotations

from invoke.collection import Collection

from salvor.commands import checklist, evidence, hosts, incidents, recovery, sandbox, schedule, status, upkeep, watch

namespace = Collection(
    *(
        task
        for theme in (recovery, upkeep, schedule, watch, status, checklist, evidence, incidents, hosts, sandbox)
        for task in theme.TASKS
    )
)
