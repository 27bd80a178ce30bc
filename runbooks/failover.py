"""Promote the standby. No backup is read.

Use it when the primary's server or host is lost and its standby is healthy: it is the quickest way, and loses least.
The old primary is fenced first, with evidence, so that it cannot take writes when it comes back; without evidence
nothing is promoted.

Do not use it for damage that a statement did (a dropped table, a wrong UPDATE): the standby has the same damage.
"""

from salvor.steps.assess import assess
from salvor.steps.isolate import isolate
from salvor.steps.notify import notify
from salvor.steps.reroute import reroute
from salvor.steps.restore import restore
from salvor.steps.verify import verify

STEPS = (assess, notify, isolate, restore, verify, reroute, notify)
WAYS = ("failover",)
