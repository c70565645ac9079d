"""Replicas as processes on this machine."""
