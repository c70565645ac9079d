"""A bundle as a host takes it: hashes checked, score.py loaded, packages compared with its lock."""
