"""Approval by a second person: what it is, who gives it, and how a step waits for it."""
