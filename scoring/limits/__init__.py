"""Bounds of a request: its time, its text, and what shares of memory are counted on."""
