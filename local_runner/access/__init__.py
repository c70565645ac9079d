"""Access to a runner: its certificates and keys, and a client's credentials."""
