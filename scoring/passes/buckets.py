"""Shapes that an encoder's forward is graphed for: a batch is padded to the next of each."""

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512)  # tokens
BATCHES = (1, 2, 4, 8, 16, 32)  # rows
