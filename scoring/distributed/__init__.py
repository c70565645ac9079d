"""GPUs of one host that share a model: process group, sums, and one choice of tokens."""
