"""HTTP interface: routes, OpenAI's API, and uvicorn with bounded waits."""
