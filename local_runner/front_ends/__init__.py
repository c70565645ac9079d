"""Processes that answer HTTP and gRPC beside the engine's, which alone has the model."""
