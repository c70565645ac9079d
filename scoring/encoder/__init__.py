"""Encoders: the fused model with its steps, CUDA graphs, Inductor, DeepSpeed, CPUs, and their verification."""
