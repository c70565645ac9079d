"""Command line: one thin function per verb, and printing."""
