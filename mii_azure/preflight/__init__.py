"""Questions that only Azure can answer, asked before a deployment."""
