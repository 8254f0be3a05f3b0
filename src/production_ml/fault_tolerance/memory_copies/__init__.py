"""Copies of the newest steps in memory: kept by the process that writes, and found by a restarted worker."""
