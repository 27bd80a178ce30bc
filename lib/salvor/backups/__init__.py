"""Backups between incidents: what is wrong with them, which of them stay, and what a system tells of its own."""
