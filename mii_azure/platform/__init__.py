"""Azure ML's limits, servers and secret references, and the Azure part of a spec."""
