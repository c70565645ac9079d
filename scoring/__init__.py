"""Code that runs inside the endpoint and behind the local runner; copied byte for byte into every bundle."""
