"""Logs, metrics and traces of a host."""
