"""Tensor parallelism: worker processes of a sliced model, the calls they follow, and its decoder."""
