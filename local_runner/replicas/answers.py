"""Answers as replicas send them: errors as status and body, which cross processes where exceptions may not."""

from local_runner.bundle.script import Answer
from local_runner.host.host import Host
from local_runner.protocol.errors import body_of
from scoring.errors import MiiAzureError


async def answer(host: Host, raw: str, headers: dict[str, str]) -> Answer:
    """Have the host score a request, and turn a refusal into an answer."""
    try:
        return await host.score(raw, headers)
    except MiiAzureError as error:
        return Answer(error.http_status, {"Content-Type": "application/json", **error.headers}, body_of(error))
