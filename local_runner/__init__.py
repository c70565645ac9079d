"""run: serves a bundle's own score.py over gRPC and HTTP, and talks to it.

Nothing here imports `scoring` or `mii_azure`: in a server process the bundle's own `scoring` must come first.
"""
