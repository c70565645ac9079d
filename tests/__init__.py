"""Tests; `tests.tiny_models` is shared by the demo and the benchmarks."""
