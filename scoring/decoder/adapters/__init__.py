"""Adapters from the decoders of transformers to `DecoderModel`, the one form that is executed."""
