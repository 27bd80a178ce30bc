"""Readiness: would each service make its targets today? Nothing is changed, and every look has a deadline.

`looks` asks the systems, `expected` reckons with our own history, `rules` judges, `report` says and shows it.
"""
