"""The generic tier: transformers' own modules over this package's cache, by way of their attention interface."""
