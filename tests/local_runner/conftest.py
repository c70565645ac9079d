"""A stub bundle, whole by the contract, and runners over it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import mii_azure
import scoring
from local_runner.bundle.manifest import bundle_digest, hash_files
from local_runner.process.launch import Azmlinfsrv, Runner
from tests.fork_server import ForkServer, forking

STUB = Path(__file__).parent / "stub"
PACKAGE = Path(scoring.__file__).parent
MAX_PAYLOAD = 200_000


def seal(bundle: Path) -> None:
    """Write the manifest of what is there."""
    present = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()]
    files = hash_files(bundle, sorted(set(present) - {"manifest.json"}))
    manifest = {"schema": 1, "files": files, "bundle": bundle_digest(files)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def make_bundle(folder: Path, name: str = "echo", task: str = "text-classification", **limits: int) -> Path:
    """A bundle in `folder` whose scoring package is the stub's, with the project's own errors and config."""
    bundle = folder / name
    shutil.copytree(STUB, bundle / "code", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        "__init__.py",
        "api/__init__.py",
        "api/events.py",
        "config.py",
        "errors.py",
        "generation/__init__.py",
        "generation/cache_salt.py",
        "host_api.py",
        "limits/__init__.py",
        "lora/__init__.py",
        "lora/served.py",
        "limits/control_groups.py",
        "limits/cpus.py",
        "limits/departure.py",
        "strict_json/__init__.py",
        "strict_json/body.py",
        "strict_json/files.py",
        "telemetry/__init__.py",
        "telemetry/spans.py",
    ):
        target = bundle / "code" / "scoring" / file
        target.parent.mkdir(exist_ok=True)
        shutil.copy(PACKAGE / file, target)
    deployment = {
        "schema": 1,
        "name": name,
        "task": task,
        "model": {"id": "stub"},
        "limits": {"max_payload_bytes": MAX_PAYLOAD, **limits},
    }
    swagger = {
        "openapi": "3.1.0",
        "info": {"title": name, "version": "1"},
        "paths": {"/score": {"post": {"summary": "the task's own", "responses": {"200": {"description": "ok"}}}}},
        "components": {"schemas": {"ServiceInput": {"type": "object"}}},
    }
    files = {
        "code/deployment.json": deployment,
        "code/swagger2.json": {"swagger": "2.0"},
        "code/swagger3.json": {"openapi": "3.0.3"},
        "code/swagger3.1.json": swagger,
        "model/config.json": {"model_type": "stub"},
        "requests/sample.json": {"inputs": "hello"},
    }
    for path, content in files.items():
        (bundle / path).parent.mkdir(parents=True, exist_ok=True)
        (bundle / path).write_text(json.dumps(content))
    (bundle / "environment").mkdir()
    lock = "anyio==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1.0\npackaging>=1\nnvidia-cublas==13.1\n"
    (bundle / "environment" / "requirements.lock").write_text(lock)
    seal(bundle)
    return bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One untouched stub bundle for all tests; copy it to change it."""
    return make_bundle(tmp_path_factory.mktemp("stub"))


@pytest.fixture
def own_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes a stub bundle of the test's own."""
    return lambda **options: make_bundle(tmp_path, **options)


@pytest.fixture(scope="session")
def runner(bundle: Path) -> Iterator[Runner]:
    """A runner over the stub bundle, for tests that leave it running."""
    with Runner(bundle, arguments=("--drain-seconds", "0.5")) as started:
        yield started


@pytest.fixture(scope="session")
def azmlinfsrv(bundle: Path) -> Iterator[Azmlinfsrv]:
    """Azure's inference server over the stub bundle."""
    with Azmlinfsrv(bundle) as started:
        yield started


MODELS = {
    "chat": ("llama", "conversational"),
    "gpt2": ("gpt2", "text-generation"),
    "embed": ("bert", "sentence-embeddings"),
    "tools": ("qwen2", "conversational"),
    "rerank": ("bert", "text-ranking"),
    "alike": ("bert", "sentence-similarity"),
    "classes": ("bert", "text-classification"),
    "labels": ("bert", "zero-shot-classification"),
    "speech": ("whisper", "automatic-speech-recognition"),
    "summary": ("bart", "summarization"),
    "translate": ("t5", "translation"),
    "images": ("stable-diffusion", "text-to-image"),
}

#: Further names of models: the first is given at generation, the others when it is served.
ALIASES: dict[str, tuple[str, ...]] = dict.fromkeys(MODELS, ()) | {
    "embed": ("vectors", "org/embed-1", "text-embedding-3-small")
}


@pytest.fixture(scope="session")
def real(
    tiny: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer
) -> Iterator[Callable[[str], Runner]]:
    """`real(name)` is a runner over a real bundle of a tiny model, started when first asked for."""
    started: dict[str, Runner] = {}
    with ExitStack() as stack:

        def runner(name: str) -> Runner:
            if name not in started:
                kind, _, form = name.partition("-")  # of "tools" the form of its calls too
                family, task = MODELS[kind]
                folder = tmp_path_factory.mktemp("real") / name
                model = str(tiny(family, task))
                if name == "embed":
                    from tests.sentence_folders import NORMALIZE, sentence_folder

                    prompts = {"prompts": {"query": "query: "}}
                    inner = tmp_path_factory.mktemp("sentence") / "model"
                    model = str(sentence_folder(tiny(family, task), inner, layers=[NORMALIZE], prompts=prompts))
                if kind == "tools":
                    from tests.tool_models import TEMPLATES, with_template

                    copied = tmp_path_factory.mktemp("tools") / "model"
                    model = str(
                        with_template(tiny(family, task), copied, TEMPLATES[form.replace("-", "_") or "hermes"])
                    )
                # The CPU's pass takes seconds to time its ways, of which a tiny model shows nothing.
                off = ("cpu",) if family == "bert" else ()
                adapters = []
                if name == "chat":
                    from tests.tiny_adapters import tiny_adapter

                    beside = tmp_path_factory.mktemp("adapter") / "terse"
                    adapters = [f"terse={tiny_adapter(Path(model), task, beside, ('q_proj', 'up_proj'))}"]
                bundle = mii_azure.generate(
                    task,
                    model,
                    name,
                    output=folder,
                    passes_off=off,
                    served_name=ALIASES[kind][:1],
                    adapters=adapters,
                )
                told = ("--served-name", ",".join(ALIASES[kind][1:])) if ALIASES[kind] else ()
                with forking(fork_server):
                    started[name] = stack.enter_context(Runner(bundle, arguments=("--drain-seconds", "1", *told)))
            return started[name]

        yield runner
