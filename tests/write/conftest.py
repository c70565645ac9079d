"""Specs and plans to write bundles from, made by hand so that what is written is judged apart from what was decided."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mii_azure.bundle import write
from mii_azure.planning import Decision, Memory, Plan, Probe
from mii_azure.profile import Profile
from mii_azure.render import content_hash, render
from mii_azure.spec import Spec
from scoring.tasks import schema

#: Instance type by the device line that golden trees are kept for.
SKUS = {"cpu": "Standard_F8s_v2", "t4": "Standard_NC4as_T4_v3", "a100": "Standard_NC24ads_A100_v4"}
_DTYPES = {"cpu": "float32", "t4": "float16", "a100": "bfloat16"}


def make_profile(task: str) -> Profile:
    """A profile of BERT's size; a decoder's for the tasks that generate."""
    generative = schema(task)["request"]["anyOf"][0]["properties"].get("stream") is not None
    return Profile(
        model="models/tiny",
        revision=None,
        architecture="LlamaForCausalLM" if generative else "BertModel",
        family="llama" if generative else "bert",
        kind="decoder" if generative else "encoder",
        parameters=109_482_240,
        weight_bytes=437_928_960,
        dtype="float32",
        layers=12,
        hidden_size=768,
        heads=12,
        kv_heads=12,
        head_dim=64,
        vocab_size=30_522,
        context_length=512,
        kv_bytes_per_token=73_728 if generative else 0,
        source="folder",
    )


def make_plan(task: str, device: str = "cpu", **changes: object) -> Plan:
    """A plan for `device`, a key of SKUS."""
    cpu = device == "cpu"
    probe = Probe(initial_delay=30, period=10, timeout=5, success_threshold=1, failure_threshold=30)
    fields = {
        "task": task,
        "task_options": {},
        "profile": make_profile(task),
        "instance_type": SKUS[device],
        "quota_family": "Standard FSv2 Family" if cpu else "Standard NCADS Family",
        "quota_cores": 10,
        "device": "cpu" if cpu else "cuda",
        "image": "cpu" if cpu else "cuda13",
        "dtype": _DTYPES[device],
        "tensor_parallel": 1,
        "memory": Memory(weights=437_928_960, kv_cache=0, activations=2**28, context=2**29, available=2**34),
        "fits": True,
        "context_length": 512,
        "max_batch_tokens": 16_384,
        "max_batch_size": 32,
        "max_wait_ms": 5,
        "queue_size": 256,
        "max_payload_bytes": 4 << 20,
        "max_concurrent_requests": 8,
        "request_timeout_ms": 60_000,
        "readiness": probe,
        "liveness": probe.model_copy(update={"initial_delay": 60}),
        "decisions": (
            Decision(what="precision", value=_DTYPES[device], reason="what the device computes fastest | in full"),
            Decision(what="instance type", value=SKUS[device], reason="as asked"),
        ),
    }
    return Plan.model_validate(fields | changes)


def make_spec(task: str, **changes: object) -> Spec:
    return Spec.model_validate({"task": task, "model": "models/tiny", "name": "My-qa"} | changes)


def write_bundle(target: Path, weights: Path, task: str = "question-answering", device: str = "cpu", **options) -> Path:
    """A whole bundle with the two small files of `weights` as its model."""
    spec, plan = make_spec(task), make_plan(task, device)
    return write(
        target,
        render_files=lambda hashes: render(
            spec, plan, schema(task), model_id="tiny", model_version=content_hash(hashes)
        ),
        weights={f"model/{path.name}": path for path in weights.iterdir()},
        **options,
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and 64 KiB that stand for weights: bytes are copied and hashed, never loaded."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "config.json").write_text('{"model_type": "bert"}\n')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 256)
    return folder


@pytest.fixture
def make_bundle(tmp_path: Path, weights: Path) -> Callable[..., Path]:
    """Writes a bundle below the test's own folder."""
    return lambda name="bundle", **options: write_bundle(tmp_path / name, weights, **options)
