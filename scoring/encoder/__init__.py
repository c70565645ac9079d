"""Encoders: the fused model and its operations, CUDA graphs, Inductor, DeepSpeed, CPUs, and their verification."""
