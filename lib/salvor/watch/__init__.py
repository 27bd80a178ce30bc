"""Automatic recovery: rules that watch a figure, act when it stays bad, and call people when that does not help."""
