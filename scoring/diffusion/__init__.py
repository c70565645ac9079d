"""Stable Diffusion: the pipeline, its loop as CUDA graphs, and its verification."""
