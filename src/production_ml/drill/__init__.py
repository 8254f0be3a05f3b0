"""Drills: a training script is hit by real faults, one after the other, and is told how it came through each."""
