"""Triton kernels, one file a family; imported only where they are launched."""
