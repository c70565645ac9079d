"""Triton kernels, one file per family; imported only where they are launched."""
