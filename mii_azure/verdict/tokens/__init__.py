"""Tokens of a generative target, judged by the model that it should serve, from the text of its answers alone."""
