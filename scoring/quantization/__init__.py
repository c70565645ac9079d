"""int8 weights: how rows are quantized, how they lie in a model folder, and how they are read."""
