"""Azure ML as it is: its limits, servers, secrets by reference, and what a spec says about it."""
