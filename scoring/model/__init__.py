"""Model folders: loading without randomly initialised weights, and facts for passes."""
