"""Generated text: continuous batching, sequences, prefix cache, streaming and stop texts."""
