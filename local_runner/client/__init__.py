"""Clients of a runner: of its scoring service, and of its metrics on a terminal."""
