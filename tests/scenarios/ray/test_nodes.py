"""A node is killed under load: no accepted request is lost, streams say how they ended, replicas come back."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import mii_azure
from local_runner.client.client import Client
from mii_azure.errors import ReplicaLost
from tests.scenarios.ray.conftest import Front, TwoNodes, front, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

TOKENS = 48
PROMPTS = [f"the {word} said" for word in ("cat", "dog", "king", "sea", "wind", "tree", "child", "stone")]


def expected(model: Path) -> dict[str, str]:
    """What plain transformers generates, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = {}
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        made = network.generate(**given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        found[prompt] = tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def body(prompt: str) -> dict[str, Any]:
    parameters = {"max_new_tokens": TOKENS, "do_sample": False, "return_full_text": False}
    return {"inputs": prompt, "parameters": parameters}


class Load:
    """Clients that ask without a pause until they are told to stop; every answer and every failure is kept."""

    def __init__(self, served: Front, wanted: dict[str, str]) -> None:
        self._served, self._wanted = served, wanted
        self._stop = threading.Event()
        self.right, self.wrong, self.whole, self.broken = 0, [], 0, 0  # type: ignore[var-annotated]
        kinds = (*[self._over_grpc] * 3, *[self._over_http] * 3, *[self._streams] * 2)
        self._threads = [threading.Thread(target=self._ask, args=(kind, at)) for at, kind in enumerate(kinds)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, kind: Callable[[str], str], at: int) -> None:
        while not self._stop.is_set():
            prompt = PROMPTS[at % len(PROMPTS)]
            at += 1
            try:
                text = kind(prompt)
                if text == self._wanted[prompt]:
                    self.right += 1
                else:
                    self.wrong.append((kind.__name__, prompt, text))
            except ReplicaLost:
                assert kind == self._streams
                self.broken += 1
            except Exception as error:
                self.wrong.append((kind.__name__, prompt, repr(error)))

    def _over_grpc(self, prompt: str) -> str:
        with Client(self._served.grpc) as client:
            return str(client.query(body(prompt))[0]["generated_text"])

    def _over_http(self, prompt: str) -> str:
        # No client retries here: what was accepted is answered, by this one call.
        answer = httpx.post(f"{self._served.http}/score", json=body(prompt), timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return str(answer.json()[0]["generated_text"])

    def _streams(self, prompt: str) -> str:
        with Client(self._served.grpc) as client:
            return "".join(event["token"]["text"] for event in client.stream(body(prompt)) if "token" in event)


def test_a_node_is_killed_under_load(cluster: TwoNodes, tiny: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = tiny("gpt2", "text-generation")
    facts = {"task": "text-generation", "model": str(model), "dtype": "float32", "deployment_name": "killed"}
    bundle = mii_azure.generate(**facts, output=tmp_path / "bundle")
    wanted = expected(model)
    options = ("--ray-address", cluster.address, "--min-replicas", "2")
    with front(bundle, tmp_path / "front", *options) as served:
        served.wait()
        until(lambda: served.running() == 2, 30, "two replicas")
        before = cluster.replicas()
        doomed = {actor for actor, node in before.items() if node == cluster.node.node_id}
        assert len(before) == 2 and len(doomed) == 1, "one replica on each node"
        with Load(served, wanted) as load:
            until(lambda: load.right > 30 or bool(load.wrong), 20, "answers of both replicas")
            answered = load.right
            assert not load.wrong, served.log.read_text()
            cluster.kill(cluster.node)
            back = until(lambda: len(set(cluster.replicas()) - doomed) == 2, 45, "two replicas where one node is left")
            until(lambda: served.running() == 2, 40, "the front counts two replicas")
            after = load.right
            until(lambda: load.right > after + 30, 20, "answers of both replicas again")
        assert not load.wrong
        assert after > answered, "the replica that was left answered meanwhile"
        tokens = served.metric("mii_azure_generated_tokens_total")
        assert tokens > 30 * TOKENS, "the sum over replicas, of the one that is gone too"
        again = served.metric("mii_azure_asked_again_total")
        assert again + load.broken > 0, "the node held requests when it went"
        print(f"{load.right} answers, {again:g} asked again, {load.broken} streams ended, back after {back:.1f} s")
        assert served.stop() == 0
