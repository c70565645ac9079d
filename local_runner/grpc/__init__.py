"""gRPC services over one host, and the handling of malformed messages."""
