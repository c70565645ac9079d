"""Bundles: rendered, written, described, read and compared."""
