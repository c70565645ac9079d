"""Replicas in a Ray cluster. Ray is imported when first used."""
