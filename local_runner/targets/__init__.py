"""Hosts that parity and bench compare, behind one interface."""
