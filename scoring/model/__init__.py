"""Model folders: loaded with nothing made up, and described for passes."""
