"""Salvor brings a broken platform back: staged beside the damage, proven, cut over, and written down as it happens."""

__version__ = "0.1.0"
