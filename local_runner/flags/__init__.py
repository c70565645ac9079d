"""Flags of the runner, each declared once; command lines and environment variables derive from them."""
