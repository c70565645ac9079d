"""Page for browsers at the HTTP port: static files that ask the same routes as every other client."""
