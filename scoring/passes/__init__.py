"""Optimization passes, one file each; imported without torch, triton or a GPU."""
