"""Request and reply: dialects, the service, event streams and usage."""
