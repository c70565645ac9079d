"""Command lines of the benchmarks: each tells what it does, and one that needs a GPU says so where there is none."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from tools import gpu

_FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
_TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.py"))}
_WITH_TRITON = {"prompt_attention"}  # imported with the kernels; torch for CPUs brings none
_ALL = [name for name, text in _TEXTS.items() if "= Parser(__doc__" in text and name not in _WITH_TRITON]
_ON_GPUS = [name for name in _ALL if re.search(r"Parser\(__doc__, gpus=", _TEXTS[name])]


def _ended(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


@pytest.mark.parametrize("name", _ALL)
def test_a_benchmark_tells_what_it_measures(name, monkeypatch, capsys):
    assert _ended(name, ["--help"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "--out" in said
    assert importlib.import_module(f"benchmarks.{name}").__doc__.splitlines()[0] in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure here")
@pytest.mark.parametrize("name", _ON_GPUS)
def test_a_benchmark_of_gpus_ends_with_a_sentence_where_none_is(name, monkeypatch, capsys):
    assert _ended(name, [], monkeypatch) == 1
    assert re.fullmatch(rf"{name}\.py: needs [12] CUDA GPUs?; 0 found here\n", capsys.readouterr().err)


def test_the_parser_is_that_of_most_benchmarks():
    assert len(_ON_GPUS) >= 13
    assert len(_ALL) >= 20


def test_a_gpu_step_runs_what_exists():
    for step in gpu.STEPS.values():
        module, *rest = step.arguments
        if module == "pytest":
            assert any(each.endswith("_gpu.py") for each in rest)
        else:
            assert module.removeprefix("benchmarks.") in _TEXTS


def test_gpu_steps_cover_every_test_of_gpus():
    root = _FOLDER.parent
    covered = {each for step in gpu.STEPS.values() for each in step.arguments if each.endswith("_gpu.py")}
    assert covered == {str(path.relative_to(root)) for path in root.glob("tests/**/test_*_gpu.py")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run here")
@pytest.mark.parametrize("arguments, code, says", [([], 1, "No CUDA GPU is here"), (["x"], 2, "no step is named x")])
def test_gpu_steps_that_cannot_run_are_refused(arguments, code, says, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == code
    assert says in capsys.readouterr().err
