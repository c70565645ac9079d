"""Bounds of a request: its time, its text, and the shares of memory that may be used."""
