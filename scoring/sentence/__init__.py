"""sentence-transformers folders: what their files say, and the modules after the transformer."""
