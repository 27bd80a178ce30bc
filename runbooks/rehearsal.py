"""Prove that the newest backup can be restored, without a disaster and without touching what is live.

The path of a recovery up to the cutover: the backup is staged beside what is live and verified there. `inv drill`
runs it and removes the stage again. Nothing is fenced, nothing is rerouted, nobody is woken.
"""

from salvor.steps.assess import assess
from salvor.steps.restore import restore
from salvor.steps.verify import verify

STEPS = (assess, restore, verify)
WAYS = ("physical", "logical", "snapshot", "archive")
