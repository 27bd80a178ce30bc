"""Restore from a backup, even where a standby could be promoted.

Use it for damage that a statement did, for ransomware, or when no standby can be trusted. A physical backup with its
WAL goes to any moment of its window; a dump goes to the moment when it was taken.

Nothing that users reach is touched before `reroute`, and what was live is kept until `inv discard`.
"""

from salvor.steps.assess import assess
from salvor.steps.isolate import isolate
from salvor.steps.notify import notify
from salvor.steps.reroute import reroute
from salvor.steps.restore import restore
from salvor.steps.verify import verify

STEPS = (assess, notify, isolate, restore, verify, reroute, notify)
WAYS = ("physical", "logical", "snapshot", "archive")
