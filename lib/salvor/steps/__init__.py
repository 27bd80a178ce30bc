"""The six steps. A step looks and plans: it yields findings, decisions and changes, and touches nothing."""

from collections.abc import Callable, Iterator

from salvor.change import Change, Decision, Finding
from salvor.incident import Incident

Planned = Change | Finding | Decision
Step = Callable[[Incident], Iterator[Planned]]
