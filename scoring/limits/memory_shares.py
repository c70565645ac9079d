"""What plans and passes count on of a device's memory: each share told once, with what the rest is for."""

#: Of a GPU's memory for weights; the rest is activations, keys and values, and the context.
WEIGHTS = 0.8
#: Of a GPU's memory for weights and a static decoder's slots; the rest is activations, graphs and the context.
WEIGHTS_AND_SLOTS = 0.9
#: Times the weights' size: what loading a model and answering with it takes.
LOADED = 1.3
#: Layers whose weights are on the GPU while they are in use, and that are fetched ahead, where weights wait elsewhere.
LIVE_LAYERS, FETCHED_LAYERS = 3, 1
