"""Targets of a parity run, by the names that a user gives."""

ENDPOINT = "endpoint:"  # endpoint:NAME or endpoint:NAME/SLOT, live in Azure
TARGETS = ("in-process", "grpc", "http", "azmlinfsrv")
CONTAINER = "container"  # the server that the bundle's image starts
KNOWN = (*TARGETS, CONTAINER)
