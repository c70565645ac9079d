"""Rules on a bundle or YAML, in order, and the safe changes that they offer."""
