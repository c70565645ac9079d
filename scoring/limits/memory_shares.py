"""Shares of a device's memory that plans and passes may use, each defined once, with the use of the rest."""

#: Share of a GPU's memory for weights; the rest is activations, KV cache and the CUDA context.
WEIGHTS = 0.8
#: Share of a GPU's memory for weights and a static decoder's slots; the rest is activations, graphs and the context.
WEIGHTS_AND_SLOTS = 0.9
#: Memory that loading and serving a model takes, as a multiple of the weights' size.
LOADED = 1.3
#: With weights offloaded: layers whose weights are on the GPU at once, in use or fetched ahead.
LIVE_LAYERS, FETCHED_LAYERS = 3, 1
