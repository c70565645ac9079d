"""GPUs of one host that share a model: process group, all-reduce, and rank 0's tokens on all ranks."""
