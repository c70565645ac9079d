"""The command line: one thin function a verb, and what it prints."""
