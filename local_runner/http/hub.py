"""Answers at / to the Hub's inference clients, which post every task there: where its API's form is not the pipeline's.

Source of the forms: the types and the client of huggingface_hub.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from local_runner.bundle.script import Answer
from local_runner.host.host import Host
from local_runner.http import tgi
from local_runner.protocol import hub_requests, tgi_requests
from scoring.errors import InvalidJson, InvalidParameter
from scoring.host_api import read_json

#: Clients of that API, by how they name themselves.
_CLIENTS = re.compile(r"\bhf_hub/|^@huggingface/inference\b|^text-generation\b")
_ZERO_SHOT = "zero-shot-classification"
_IMAGES = "text-to-image"


def canonical(host: Host, headers: Mapping[str, str], raw: str) -> str:
    """Body in the names of here, if one of these clients sent it for a task that they name otherwise."""
    task = host.deployment.task
    known = task in hub_requests.TASKS and _CLIENTS.search(headers.get("user-agent", ""))
    return hub_requests.canonical(raw, task) if known else raw


async def answer_to_client(host: Host, headers: Mapping[str, str], raw: str) -> Response | None:
    """Answer to a body sent to / by one of these clients; None if it is to be scored as any other."""
    task = host.deployment.task
    if task == _IMAGES and headers.get("accept", "").startswith("image/"):
        return await _image(host, headers, raw)
    if not _CLIENTS.search(headers.get("user-agent", "")):
        return None
    if task == _ZERO_SHOT:
        return await _labels(host, headers, raw)
    return await _text(host, headers, raw) if task == tgi_requests.TASK else None


async def _text(host: Host, headers: Mapping[str, str], raw: str) -> Response | None:
    """Text as text-generation-inference answers: a list of its answers, or a stream; None for another body."""
    try:
        sent = read_json(raw)
    except InvalidJson:
        return None
    if not isinstance(sent, dict) or not isinstance(sent.get("inputs"), str):
        return None
    stream = sent.get("stream") is True
    asked = tgi_requests.canonical(sent, host.deployment, stream, full=True)
    if stream:
        return await tgi.as_stream(host, headers, asked)
    return JSONResponse(await tgi.whole(host, headers, asked))


async def _labels(host: Host, headers: Mapping[str, str], raw: str) -> Response:
    """Labels as that API lists them, which is not as the pipeline does."""
    answer = await host.score(raw, headers)
    told = json.loads(answer.body)
    if answer.status >= 400 or not isinstance(told, dict) or not {"labels", "scores"} <= told.keys():
        return _plain(answer)
    pairs = zip(told["labels"], told["scores"], strict=True)
    return JSONResponse([{"label": label, "score": score} for label, score in pairs])


async def _image(host: Host, headers: Mapping[str, str], raw: str) -> Response:
    """Image as a file, for who accepts nothing else."""
    answer = await host.score(raw, headers)
    if answer.status >= 400:
        return _plain(answer)
    told: Any = json.loads(answer.body)
    if not isinstance(told, list) or len(told) != 1 or not isinstance(told[0], dict):
        raise InvalidParameter(
            "An answer that is an image file holds one image.",
            'Ask for one, or send "Accept: application/json".',
            "parameters.num_images_per_prompt",
        )
    return Response(base64.b64decode(told[0]["generated_image"]), media_type="image/png")


def _plain(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)
