"""Decoders over slots of static memory: model, KV cache, sampler, and a back end for torch and for CUDA."""
