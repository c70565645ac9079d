"""The HTTP side: routes, OpenAI's interface, and uvicorn with an end to waiting."""
