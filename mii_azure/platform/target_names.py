"""Targets of a parity run, by the names that a user gives."""

ENDPOINT = "endpoint:"  # endpoint:NAME or endpoint:NAME/SLOT, live in Azure
URL = "url:"  # url:URL, a server that runs already, ours or not
BUNDLE = "bundle:"  # bundle:FOLDER, another bundle, called in a process of its own
TARGETS = ("in-process", "grpc", "http", "azmlinfsrv")
CONTAINER = "container"  # the server that the bundle's image starts
KNOWN = (*TARGETS, CONTAINER)
ELSEWHERE = (ENDPOINT, URL, BUNDLE)  # what names of other targets begin with
