"""Adapters that bring the decoders of transformers into the one model that is executed."""
