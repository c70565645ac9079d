"""The command line as a user meets it, bad input first: a sentence, a remedy, an exit code, nothing left behind."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mii_azure.cli.conftest import Done

Tiny = Callable[[str, str], Path]


def test_a_model_without_a_tokenizer(tiny: Tiny, mii: Callable[..., Done], tmp_path: Path) -> None:
    model = copy(tiny("bert", "fill-mask"), tmp_path / "model")
    for path in [*model.glob("*token*"), *model.glob("vocab*")]:
        path.unlink()
    done = mii("generate", "--task", "fill-mask", "--model", model, "--name", "mlm")
    assert done.code == 3
    assert "[tokenizer_missing]" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def spoil_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def spoil_garbage_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def spoil_config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "code", "told"),
    [
        (spoil_no_config, "config_missing", "config.json"),
        (spoil_config_not_json, "config", "config.json"),
        (spoil_no_weights, "weights_missing", "safetensors"),
        (spoil_pickle_only, "pickle_refused", "--allow-pickle"),
        (spoil_truncated, "weights_corrupt", "model.safetensors"),
        (spoil_garbage_header, "weights_corrupt", "model.safetensors"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "generate"])
def test_models_that_cannot_be_used(
    verb: str, spoil: Callable[[Path], None], code: str, told: str, tiny: Tiny, mii: Callable[..., Done], tmp_path: Path
) -> None:
    model = copy(tiny("bert", "fill-mask"), tmp_path / "model")
    spoil(model)
    name = ["--name", "qa"] if verb == "generate" else []
    done = mii(verb, "--task", "fill-mask", "--model", model, *name)
    assert done.code == 3
    assert f"[{code}" in done.err
    assert told in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("verb", ["check", "parity", "bench", "package", "prepare", "init"])
def test_names_that_are_too_long_are_told(verb: str, mii: Callable[..., Done]) -> None:
    done = mii(verb, "a" * 300)
    assert (done.code, "[internal]" in done.err) == (3, False), done
    assert done.err.startswith("error [") and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "exit_code", "code", "told"),
    [
        ({"--task": "question-answerin"}, 2, "unknown_task", "question-answering"),
        ({"--task": "text-to-image"}, 3, "task_unsupported", "fill-mask"),
        ({"--task": "summarization"}, 3, "task_unsupported", "fill-mask"),
        ({"--model": "./modle"}, 3, "unknown_model", "model"),
        ({"--output": "a" * 300}, 3, "not_written", "File name too long"),
        ({"--name": "a"}, 2, "invalid_name", "2 to 32"),
        ({"--name": "q" * 33}, 2, "invalid_name", "2 to 32"),
        ({"--name": "q_a"}, 2, "invalid_name", "q-a"),
        ({"--name": "-qa"}, 2, "invalid_name", "letter"),
        ({"--instance-type": "NC4as_T4"}, 2, "unknown_instance_type", "Standard_NC4as_T4_v3"),
        ({"--kind": "batch", "--compute": "k"}, 2, "invalid_spec", "1 to 62 letters"),
        ({"--kind": "template", "--registry": "my.registry"}, 2, "invalid_spec", "2 to 33 letters"),
        ({"--kind": "kaito", "--image": "Own.azurecr.io/Gen:1"}, 2, "invalid_spec", "in lower case, no tag"),
        ({"--instance-count": "51"}, 2, "invalid_spec", "50"),
        ({"--auth-mode": "password"}, 2, "invalid_spec", "aad_token"),
        ({"--dtype": "int3"}, 2, "invalid_spec", "bfloat16"),
    ],
)
def test_specs_that_are_refused(
    change: dict[str, str],
    exit_code: int,
    code: str,
    told: str,
    tiny: Tiny,
    mii: Callable[..., Done],
    tmp_path: Path,
) -> None:
    copy(tiny("bert", "fill-mask"), tmp_path / "model")
    flags = {"--task": "fill-mask", "--model": "./model", "--name": "qa-test", **change}
    done = mii("generate", *(word for pair in flags.items() for word in pair))
    assert done.code == exit_code, done
    assert f"[{code}]" in done.err
    assert told in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("context-length", "129", "longer than the 128"),
        ("context-length", "0", "context_length"),
        ("context-length", "many", "CONTEXT_LENGTH"),
        ("max-concurrency", "-1", "max_concurrency"),
        ("memory-share", "0.5", "runs in batches"),
        ("memory-share", "nan", "memory_share"),
        ("expected-prompt-tokens", "100", "longer than the context"),
        ("expected-new-tokens", "0", "expected_new_tokens"),
    ],
)
@pytest.mark.parametrize("twin", [False, True])
def test_memory_that_cannot_be_had_is_refused_and_nothing_is_written(
    flag: str,
    value: str,
    told: str,
    twin: bool,
    tiny: Tiny,
    mii: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama", "text-generation")
    arguments = ["generate", "--task", "text-generation", "--model", model, "--name", "abc"]
    arguments += ["--instance-type", "Standard_F8s_v2"]
    if twin:
        monkeypatch.setenv(f"MII_AZURE_{flag.upper().replace('-', '_')}", value)
    done = mii(*arguments, *([] if twin else [f"--{flag}", value]))
    assert done.code == 2
    assert told.lower().replace("_", "-") in done.err.lower().replace("_", "-")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_longer_requests_leave(tiny: Tiny, mii: Callable[..., Done]) -> None:
    arguments = ["plan", "--task", "text-generation", "--model", tiny("llama", "text-generation")]
    arguments += ["--instance-type", "Standard_NC40ads_H100_v5", "--max-concurrency", "9", "--context-length", "100"]
    done = mii(*arguments)
    assert done.code == 0
    assert re.search(r"100 tokens +9 *\n", done.out)
    assert json.loads(mii(*arguments, "--json").out)["at_once"] == [[100, 9]]


def test_a_missing_flag_is_a_usage_error(mii: Callable[..., Done]) -> None:
    done = mii("generate", "--task", "fill-mask")
    assert done.code == 2
    assert "--model" in done.err


def test_generate_check_and_generate_again(tiny: Tiny, mii: Callable[..., Done], tmp_path: Path) -> None:
    arguments = ("generate", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"), "--name", "mlm")
    first = mii(*arguments, "--json")
    assert first.code == 0
    assert json.loads(first.out)["bundle"] == str(tmp_path / "mlm")
    again = mii(*arguments)
    assert again.code == 3
    assert "bundle_exists" in again.err
    assert "--force" in again.err
    assert mii(*arguments, "--force").code == 0
    checked = mii("check", "mlm", "--json")
    assert checked.code == 0, checked.out
    assert not [finding for finding in json.loads(checked.out) if finding["severity"] == "error"]


def test_an_edited_bundle_is_found_and_not_served(tiny: Tiny, mii: Callable[..., Done], tmp_path: Path) -> None:
    mii("generate", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"), "--name", "mlm")
    script = tmp_path / "mlm" / "code" / "score.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    done = mii("check", "mlm")
    assert done.code == 1
    assert "score.py" in done.out
    command = [sys.executable, "-m", "mii_azure.cli.app", "serve", "mlm", "--grpc-port", "0", "--http-port", "0"]
    served = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert served.returncode == 3
    assert "score.py" in served.stderr
    assert "Traceback" not in served.stderr


@pytest.mark.parametrize("verb", ["check", "parity", "bench"])
def test_a_folder_that_is_no_bundle(verb: str, mii: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        done = mii(verb, name)
        assert done.code == 3
        assert "[not_a_bundle]" in done.err


def test_targets_that_do_not_exist(tiny: Tiny, mii: Callable[..., Done]) -> None:
    mii("generate", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"), "--name", "mlm")
    for verb in ("parity", "bench"):
        done = mii(verb, "mlm", "--targets", "grpc,grcp")
        assert done.code == 2
        assert "'grcp'" in done.err


def test_queries_that_cannot_be_sent(mii: Callable[..., Done]) -> None:
    done = mii("query", "127.0.0.1:1", "{not json")
    assert done.code == 2
    assert "[invalid_spec]" in done.err
    assert mii("query", "nowhere", '{"inputs": "x"}').code == 3
    unreachable = mii("query", "127.0.0.1:1", '{"inputs": "x"}', "--timeout", "2")
    assert unreachable.code != 0
    assert "127.0.0.1:1" in unreachable.err


def test_plan_prints_every_decision_and_downloads_nothing(tiny: Tiny, mii: Callable[..., Done]) -> None:
    arguments = ("plan", "--task", "fill-mask", "--model", tiny("bert", "fill-mask"))
    made = json.loads(mii(*arguments, "--json").out)
    table = mii(*arguments, "--verbose").out
    for decision in made["decisions"]:
        assert re.search(rf"^{re.escape(decision['what'])} +.*{re.escape(decision['reason'])}$", table, re.MULTILINE)


def test_environment_variables_stand_for_flags(
    tiny: Tiny, mii: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MII_AZURE_TASK", "fill-mask")
    monkeypatch.setenv("MII_AZURE_MODEL", str(tiny("bert", "fill-mask")))
    monkeypatch.setenv("MII_AZURE_INSTANCE_TYPE", "standard_nc4as_t4_v3")
    monkeypatch.setenv("MII_AZURE_JSON", "1")
    assert json.loads(mii("plan").out)["instance_type"] == "Standard_NC4as_T4_v3"
