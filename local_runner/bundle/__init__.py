"""Bundles on their way into a host: hashes checked, score.py loaded, packages compared with the lock."""
