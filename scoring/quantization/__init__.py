"""int8 weights: quantization by row, their layout in a model folder, and their loading."""
