"""Small requests with large consequences: they are refused, the server's memory stays, and others are answered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import mii_azure
from local_runner.process.launch import LOOPBACK, Runner
from mii_azure.verdict.grade import TOLERANCES, grade
from tests.scenarios.faults.conftest import peak

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]

MOST_GROWTH = 300 << 20  # of the server's memory, at its peak
TOGETHER = 6
LONG = "the river runs " * 320_000  # 4.8 MB
CONTEXT = "Anna lives in Bern. " * 1400  # 28 KB
REQUESTS: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    "long texts": ("gpt2", "text-generation", LONG, {}),
    "a long message": ("qwen2", "conversational", [{"role": "user", "content": LONG}], {}),
    "a long text to cut": ("bert", "text-classification", LONG, {"truncation": True}),
    "spaces": ("bert", "token-classification", " " * 4_800_000, {}),
    "every span": (
        "roberta",
        "question-answering",
        {"question": "Where?", "context": CONTEXT},
        {"top_k": 10**6, "max_answer_len": 512},
    ),
    "a hundred masks": ("bert", "fill-mask", ["[MASK] " * 120] * 60, {"top_k": 10**6}),
    "half a million stops": ("gpt2", "text-generation", "Hi", {"stop": [str(n) for n in range(430_000)]}),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", REQUESTS)
def test_six_at_once_leave_memory_and_others_alone(name: str, tiny: Tiny, tmp_path: Path) -> None:
    family, task, inputs, parameters = REQUESTS[name]
    bundle = mii_azure.generate(
        task=task, model=str(tiny(family, task)), deployment_name="large", output=tmp_path / "bundle"
    )
    sample = (bundle / "requests" / "sample.json").read_bytes()
    body = {"inputs": inputs, "parameters": parameters}
    with (
        Runner(bundle, arguments=("--drain-seconds", "2")) as runner,
        httpx.Client(base_url=f"http://{LOOPBACK}:{runner.http_port}", trust_env=False, timeout=120) as http,
        ThreadPoolExecutor(TOGETHER) as pool,
    ):
        good = http.post("/score", content=sample)
        assert good.status_code == 200
        before = peak(runner.process.pid)
        sent = [pool.submit(http.post, "/score", json=body) for _ in range(TOGETHER)]
        others = [http.post("/score", content=sample) for _ in range(3)]  # products over more rows round otherwise
        codes = {reply.result().status_code for reply in sent}
        assert codes <= ({200} if parameters.get("truncation") else {400, 413})
        for other in others:
            same = grade((200, good.content), (other.status_code, other.content), TOLERANCES["float32"])
            assert same[0] in ("bytes", "values"), same
        assert peak(runner.process.pid) - before < MOST_GROWTH
