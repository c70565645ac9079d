"""Checks of a model folder's files: names of shards, and the model's own code."""
