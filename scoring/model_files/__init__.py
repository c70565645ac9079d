"""Files of a model folder as they are found: names of shards, and code of the model's own."""
