"""Requests answered in processes beside the engine's: rows go to it, and tokens come back, over a socket."""
