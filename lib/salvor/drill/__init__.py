"""Drills: the very path of a recovery, played on a stand-in with a real disaster, or on a copy beside what is live."""
