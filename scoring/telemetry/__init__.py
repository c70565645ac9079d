"""Counts, times and spans that the package reports of itself; standard library only."""
