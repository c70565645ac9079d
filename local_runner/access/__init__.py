"""Who may talk to a runner, and as whom a client does: certificates and keys."""
