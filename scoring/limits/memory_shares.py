"""Shares of a device's memory that plans and passes may use, each defined once, with the use of the rest."""

#: Share of a GPU's memory for weights; the rest is activations, KV cache and the CUDA context.
WEIGHTS = 0.8
#: Share of a GPU's memory for weights and a decoder's KV cache; the rest is activations, graphs and the context.
WEIGHTS_AND_SLOTS = 0.9
#: Tokens of all sequences for which a decoder's KV cache must have room, or for one of full length if that is shorter.
LEAST_CACHE_TOKENS = 8192
#: Tokens of all sequences in a draft model's KV cache; longer sequences are not drafted.
DRAFT_CACHE_TOKENS = 16_384
#: Memory that a KV cache leaves free whatever its share: compiled kernels, graphs, and what `generate` needs, bytes.
RESERVE_BYTES = 1 << 30
#: Memory that loading and serving a model takes, as a multiple of the weights' size.
LOADED = 1.3
#: With weights offloaded: layers whose weights are on the GPU at once, in use or fetched ahead.
LIVE_LAYERS, FETCHED_LAYERS = 3, 1
