"""Adapters from the decoders of transformers to `DecoderModel`, which is what the fused tier executes."""
