"""Parity and benchmark: the same requests to every host, replies graded, differences explained."""
