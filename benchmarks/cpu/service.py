"""What a service adds to the bare forward with tokenisation, without and with the pass; in-process, sides in turns."""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from mii_azure.model.packaged import packaged_model
from scoring.api.service import Service
from scoring.config import Deployment
from scoring.encoder.real_text import paragraphs
from scoring.model.loader import load
from scoring.passes.cpu import Cpu
from scoring.schema.registry import task_class

ALLOWED = 1.05


def run(budget_s: float) -> list[dict[str, Any]]:
    """Rows of one text, sixteen alike and sixteen of many lengths."""
    deployment = Deployment(name="bench", task="sentence-embeddings", dtype="float32")
    loaded = load(deployment, packaged_model("minilm"))
    service = Service(deployment, loaded, task_class(deployment.task)(loaded, deployment.task), {})
    service.start()
    prose = paragraphs()
    inputs = {"1": prose[:1], "16 alike": prose[:1] * 16, "16 of many lengths": prose[:160:10]}
    rows = [_row(f"{name}, plain", texts, service, budget_s) for name, texts in inputs.items()]
    Cpu().apply(loaded.model)
    return rows + [_row(f"{name}, with the pass", texts, service, budget_s) for name, texts in inputs.items()]


def _row(name: str, texts: list[str], service: Service, budget_s: float) -> dict[str, Any]:
    body = json.dumps({"inputs": texts})
    sides: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(service.loaded.model, service.loaded.tokenizer, texts),
        "service": lambda: service.answer(body),
    }
    wall: dict[str, list[float]] = {side: [] for side in sides}
    used: dict[str, list[float]] = {side: [] for side in sides}
    end = time.perf_counter() + budget_s
    while len(wall["bare"]) < 8 or time.perf_counter() < end:
        for side, call in sides.items():
            began, before = time.perf_counter(), time.process_time()
            call()
            wall[side].append(1e3 * (time.perf_counter() - began))
            used[side].append(1e3 * (time.process_time() - before))
    ratio, work = (median(a / b for a, b in zip(each["service"], each["bare"], strict=True)) for each in (wall, used))
    row = {"work": f"MiniLM, {name}", **{f"{side} ms": median(times) for side, times in wall.items()}}
    return {**row, "service/bare": ratio, "of processor time": work, "bars": {"1.05 x bare": ratio <= ALLOWED}}


def bare(model: Any, tokenizer: Any, texts: list[str]) -> str:
    """Tokenise, forward, pool and write JSON, as a user of plain transformers does."""
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        live = batch["attention_mask"][..., None]
        vectors = (model(**batch)[0] * live).sum(1) / live.sum(1)
        return json.dumps(torch.nn.functional.normalize(vectors, dim=-1).tolist())
