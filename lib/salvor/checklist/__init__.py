"""Checklists: what is looked at every day, week and month, by commands and by people, and written down."""
