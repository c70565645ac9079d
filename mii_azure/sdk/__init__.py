"""Verbs of the package as functions: generate, deploy, client, query."""
