"""Approval: at the terminal, and by a second person: who gives it, and how a step waits for it."""
