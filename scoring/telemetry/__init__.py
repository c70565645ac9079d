"""Counts, times and spans that the package tells of itself; standard library only."""
