"""What the documents say is what happens."""

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.tables import TABLES, shown
from benchmarks.tables import render as render_table
from mii_azure.verdict.cases import edge_requests
from scoring.schema.speech import tone
from tests.fork_server import ForkServer
from tests.forked_commands import commands
from tests.tiny_models import tiny_model
from tools.docs import PAGES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: The folders that the README's examples name, as tiny models of the right kind.
MODELS = {
    "qa": ("bert", "question-answering"),
    "gpt2": ("gpt2", "text-generation"),
    "chat": ("llama", "conversational"),
    "sentiment": ("roberta", "text-classification"),
    "ner": ("bert", "token-classification"),
    "mlm": ("bert", "fill-mask"),
    "minilm": ("bert", "feature-extraction"),
    "reranker": ("bert", "text-ranking"),
    "nli": ("bert", "zero-shot-classification"),
    "t5": ("t5", "translation"),
    "whisper": ("whisper", "automatic-speech-recognition"),
    "sd": ("stable-diffusion", "text-to-image"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("readme")
    for name, (family, task) in MODELS.items():
        tiny_model(family, task, root / "models" / name)
    (root / "talk.wav").write_bytes(base64.b64decode(tone(1)))
    yield root


@pytest.fixture(scope="module")
def forked_commands(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose `mii-azure` is a forked process."""
    with commands(fork_server, tmp_path_factory.mktemp("bin"), {"mii-azure": "mii_azure.cli.app"}) as place:
        yield place


def run(command: list[str], folder: Path, first_of_path: Path) -> str:
    path = os.pathsep.join((str(first_of_path), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "MII_AZURE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(blocks("bash"))))
def test_readme_commands_run(number: int, folder: Path, forked_commands: Path) -> None:
    if "query speech" in blocks("bash")[number]:
        pytest.importorskip("soundfile", reason="the extra speech is not installed")
    output = run(["bash", "-euo", "pipefail", "-c", blocks("bash")[number]], folder, forked_commands)
    if number == 0:
        assert "agree: in-process, grpc, azmlinfsrv" in output
        assert "az ml online-endpoint create" in output


def test_the_commands_of_the_first_block_run_as_they_are_installed(folder: Path) -> None:
    """Those that read, write and serve; parity's hosts start as in `tests/local_runner/test_lifecycle.py`."""
    first = blocks("bash")[0].replace("--name qa", "--name installed").replace("query qa", "query installed")
    lines = [line for line in first.splitlines() if re.match(r"mii-azure (plan|generate|query) ", line)]
    assert len(lines) == 3
    output = run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], folder, Path(sys.executable).parent)
    assert output.splitlines()[-2].split() == ["answer", "score", "start", "end"]


def test_the_demo_ends_as_the_readme_says() -> None:
    """As many requests as parity sends for its task; `make demo` itself loads a real model."""
    assert f"azmlinfsrv answered {len(edge_requests('conversational', 8192))} requests alike" in README


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_readme_python_runs(number: int, folder: Path) -> None:
    code = blocks("python")[number] + "\nprint(answer)\n"
    assert "'answer'" in run([sys.executable, "-c", code], folder, Path(sys.executable).parent)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_pages_that_the_code_writes_are_current(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page](), "run `make docs`"


@pytest.mark.parametrize("name", TABLES)
def test_benchmark_tables_are_generated_from_their_results(name: str) -> None:
    texts = (page.read_text(encoding="utf-8") for page in tables.PAGES)
    (text,) = (text for text in texts if name in tables.tables_of(text))
    assert shown(name, text) == render_table(name), "run `python -m benchmarks.tables`"


def test_every_figure_that_the_readme_sums_up_is_in_the_tables() -> None:
    text = README.partition("## What it costs, and what it gives")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("- **")]
    figures = [
        figure for line in lines for figure in re.findall(r"\d[\d,]*\.\d+×?|\d+(?= requests/s)|\d\d+(?= with)", line)
    ]
    figures += re.findall(r"[\d,]{6,}", text)
    assert len(lines) == 5 and len(figures) >= 10
    table = " ".join(render_table(name) for name in ("hosts", "peers", "encoders", "decoders", "throughput"))
    assert [figure for figure in figures if figure not in table] == []


def test_the_readme_counts_the_rules_that_there_are() -> None:
    from mii_azure.checks.check import RULES

    assert f"Microsoft's own loaders and {len(RULES)} rules" in README


def test_every_promise_of_security_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promises = text.partition("## What is promised")[2].partition("## What is not promised")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for path, function in named:
            assert f"def {function}" in (ROOT / path).read_text(encoding="utf-8"), (path, function)
