"""Bring a broken service back, whichever way is quickest and loses least.

Use it first, and use it when you do not know what is wrong. It looks at every system of the service, pins what is
broken, and takes the best way back that is open: a standby whose lag is within the RPO, else the newest backup that is
sound, restored beside the damage and proven before users reach it.

When a wrong statement damaged the data (a table dropped, an UPDATE without WHERE), say when: `--failed-at=TIME` goes
back to the last moment before, `--at=TIME` to exactly that time.

Nothing that users reach is touched before `reroute`, and what was live is kept until `inv discard`.
"""

from salvor.steps.assess import assess
from salvor.steps.isolate import isolate
from salvor.steps.notify import notify
from salvor.steps.reroute import reroute
from salvor.steps.restore import restore
from salvor.steps.verify import verify

STEPS = (assess, notify, isolate, restore, verify, reroute, notify)
