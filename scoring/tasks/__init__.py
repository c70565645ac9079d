"""Tasks, one file each: encode, forward and decode."""
