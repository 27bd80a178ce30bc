"""Notebooks: what their cells call, how papermill executes them, and the page beside each."""
