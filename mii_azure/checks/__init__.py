"""Rules about a bundle or YAML, in their order, and the safe changes that they offer."""
