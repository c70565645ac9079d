"""Worker processes of a sliced model, the calls that they follow, and its decoder."""
