"""The gRPC side: services over one host, and messages that are none."""
