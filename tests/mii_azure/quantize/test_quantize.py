"""generate --quantise int8: smaller, the same each time, measured, planned without weights; or refused."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from mii_azure import errors
from mii_azure.bundle.bundle_view import told_by
from mii_azure.bundle.manifest import load_manifest
from mii_azure.model import safetensors
from mii_azure.model.source import resolve
from mii_azure.planning.planner import plan
from mii_azure.planning.ranking import rank
from mii_azure.quantize import accuracy
from scoring.errors import HeadMissing
from tests.conftest import Tiny

QA = ("bert", "question-answering")
WEIGHTS = "model/model.safetensors"
A100 = "Standard_NC24ads_A100_v4"


def made(folder: Path, output: Path, task: str = QA[1], **options: Any) -> Path:
    return mii_azure.generate(task, str(folder), "my-model", output=output, **({"quantise": "int8"} | options))


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    """A model of the test's own, to damage."""
    return Path(shutil.copytree(tiny(*QA), tmp_path / "model"))


def test_two_generations_are_the_same_and_what_checks_a_bundle_is_content(tiny: Tiny, tmp_path: Path) -> None:
    bundles = [made(tiny(*QA), tmp_path / name) for name in "ab"]
    assert len({load_manifest(bundle)["bundle"] for bundle in bundles}) == 1
    assert mii_azure.diff(*bundles) == []
    assert mii_azure.check(bundles[0]) == []
    assert mii_azure.verify(bundles[0]).sound


def test_it_is_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    """Without it everything is as it was; with it a difference is told as one of the model and the settings."""
    plain, int8 = made(tiny(*QA), tmp_path / "a", quantise="none"), made(tiny(*QA), tmp_path / "b")
    assert (plain / WEIGHTS).read_bytes() == (tiny(*QA) / "model.safetensors").read_bytes()
    assert told_by(plain) is None
    changes = mii_azure.diff(plain, int8)
    assert {change.file for change in changes if change.group == "model"} == {"model/config.json", WEIGHTS}
    assert any(change.what == "quantisation.scheme" and change.after == '"int8"' for change in changes)


def test_products_are_a_quarter_of_their_size_and_the_rest_is_as_it_was(tiny: Tiny, tmp_path: Path) -> None:
    source = {t.name: t for t in safetensors.read_header(tiny("llama", "text-generation") / "model.safetensors")}
    bundle = made(tiny("llama", "text-generation"), tmp_path / "b", "text-generation")
    found = {tensor.name: tensor for tensor in safetensors.read_header(bundle / WEIGHTS)}
    packed = [tensor for name, tensor in found.items() if name.endswith(".weight_packed")]
    quantised = [source[tensor.name.replace("_packed", "")] for tensor in packed]
    assert 4 * sum(tensor.bytes for tensor in packed) == sum(tensor.bytes for tensor in quantised)
    left = {name for name in source if "proj" not in name and name != "lm_head.weight"}
    assert all(found[name] == source[name] for name in left)
    assert len(packed) + len(left) == len(source)
    assert told_by(bundle).products == len(packed)  # type: ignore[union-attr]


FAMILIES = [QA, ("roberta", "fill-mask"), ("albert", "fill-mask"), ("electra", "feature-extraction")]
FAMILIES += [(family, "text-generation") for family in ("llama", "qwen2", "gpt_neox", "gptj", "opt", "bloom")]
FAMILIES += [("t5", "translation"), ("bart", "summarization")]


@pytest.mark.parametrize(("family", "task"), FAMILIES)
def test_a_plan_knows_the_bytes_before_anything_is_quantised(
    family: str, task: str, tiny: Tiny, tmp_path: Path
) -> None:
    """By names and shapes alone; what is written has longer headers, and is otherwise as large to the byte."""
    source = tiny(family, task)
    bundle = made(source, tmp_path / "b", task)
    facts = plan(task, str(source), quantise="int8").profile
    grown = {path: 8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (_weights(source), bundle / WEIGHTS)}
    assert facts.weight_bytes - grown[_weights(source)] == (bundle / WEIGHTS).stat().st_size - grown[bundle / WEIGHTS]
    told = told_by(bundle)
    assert told is not None
    assert told.output_error is not None
    assert 0.002 < told.weight_error < 0.01
    assert 0 < told.output_error < 1  # random weights spread wide make much of little


@pytest.mark.parametrize(("kind", "error"), [("fp8", 0.03), ("int4", 0.1)])
def test_other_kinds_are_planned_made_and_measured_alike(kind: str, error: float, tiny: Tiny, tmp_path: Path) -> None:
    """Of int4 the head stays as it was, as in the checkpoints that are published."""
    source, task = tiny("llama", "text-generation"), "text-generation"
    bundle = made(source, tmp_path / "b", task, quantise=kind)
    facts = plan(task, str(source), quantise=kind).profile
    grown = {path: 8 + int.from_bytes(path.read_bytes()[:8], "little") for path in (_weights(source), bundle / WEIGHTS)}
    assert facts.weight_bytes - grown[_weights(source)] == (bundle / WEIGHTS).stat().st_size - grown[bundle / WEIGHTS]
    told = told_by(bundle)
    assert told is not None
    assert (told.scheme, told.products) == (kind, 15 if kind == "fp8" else 14)
    assert error / 2 < told.weight_error < error
    assert told.output_error is not None
    assert resolve(str(bundle / "model")).weights.kind == kind
    assert mii_azure.check(bundle) == []
    kinds = {each.dtype for each in safetensors.read_header(bundle / WEIGHTS)}
    assert kinds == ({"F32", "F8_E4M3"} if kind == "fp8" else {"F32", "I32", "I64", "BF16"})


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_a_plan_starts_sooner_and_says_why() -> None:
    wide, int8 = (plan("text-generation", "facebook/opt-13b", A100, quantise=each) for each in ("none", "int8"))
    assert int8.profile.weight_bytes < 0.52 * wide.profile.weight_bytes
    assert int8.memory == wide.memory
    assert int8.readiness.failure_threshold < wide.readiness.failure_threshold
    decisions = {decision.what: decision for decision in int8.decisions}
    assert decisions["weights"].value.startswith("int8, ")
    assert decisions["pass weight_only"].reason.startswith("Int8 weights as shipped")
    assert "weights" not in {decision.what for decision in wide.decisions}


def test_a_disk_that_cannot_hold_the_weights_may_hold_them_as_int8() -> None:
    with pytest.raises(errors.DoesNotFit, match="local disk"):
        plan("text-generation", "facebook/opt-30b", A100)
    assert plan("text-generation", "facebook/opt-30b", A100, quantise="int8").instance_type == A100
    ranked = [rank("text-generation", "facebook/opt-30b", quantise=each).rows for each in ("none", "int8")]
    assert [row.fits for rows in ranked for row in rows if row.instance_type == A100] == [False, True]


def test_planning_it_imports_nothing_heavy(tiny: Tiny) -> None:
    code = f"import sys, mii_azure; mii_azure.plan({QA[1]!r}, {str(tiny(*QA))!r}, quantise='int8'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(done.stdout.split())


def test_what_it_cost_is_told_in_the_bundle(tiny: Tiny, tmp_path: Path) -> None:
    bundle = made(tiny(*QA), tmp_path / "b")
    told = json.loads((bundle / "code/deployment.json").read_text())["quantisation"]
    assert (told["scheme"], told["products"]) == ("int8", 12)
    sentence = told_by(bundle).sentence()  # type: ignore[union-attr]
    assert f"{told['output_error']:.2%} from the original in float32" in sentence
    assert sentence in (bundle / "plan.md").read_text()


def test_what_it_costs_is_what_plain_transformers_says(tiny: Tiny, tmp_path: Path) -> None:
    """Logits of the original and of what was shipped, on the passes' own probes."""
    import torch
    import transformers

    source = tiny("llama", "text-generation")
    bundle = made(source, tmp_path / "b", "text-generation")
    auto = transformers.AutoModelForCausalLM
    models = [auto.from_pretrained(folder, dtype=torch.float32).eval() for folder in (source, bundle / "model")]
    probes = accuracy.decoder_verify.reference(models[0])().ids
    with torch.inference_mode():
        wanted, found = (torch.cat([model(torch.tensor([ids])).logits[0] for ids in probes]) for model in models)
    error = float((found - wanted).norm() / wanted.norm())
    assert told_by(bundle).output_error == float(f"{error:.2g}")  # type: ignore[union-attr]
    facts = plan("text-generation", str(source)).profile
    assert accuracy.output_error(source, source, "text-generation", facts, "float32", "int8") == (0.0, "")


@pytest.mark.parametrize(
    ("family", "task", "near"),
    [
        ("llama", "text-generation", 1e-4),
        ("roberta", "fill-mask", 1e-4),
        ("t5", "translation", 0.2),  # it rounds to the stored type before one of its products, outside any layer
    ],
)
def test_where_memory_is_short_layers_are_compared_one_at_a_time(
    family: str, task: str, near: float, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model stored in 16 bits; the figure is that of two whole models in float32, and the model stays itself."""
    import torch
    import transformers

    source = Path(shutil.copytree(tiny(family, task), tmp_path / "source"))
    facts, dtype = plan(task, str(source)).profile.model_copy(update={"dtype": "bfloat16"}), "bfloat16"
    getattr(transformers, facts.architecture).from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    bundle = made(source, tmp_path / "b", task, dtype=dtype, instance_type=A100)
    whole, _ = accuracy.output_error(source, bundle / "model", task, facts, dtype, "int8")
    models = []
    load = accuracy._load
    monkeypatch.setattr(accuracy, "_load", lambda *given: models.append(load(*given)) or models[-1])
    monkeypatch.setattr(accuracy.decoder_verify, "free_bytes", lambda device: 3 * facts.parameters)
    error, note = accuracy.output_error(source, bundle / "model", task, facts, dtype, "int8")
    assert (len(models), note) == (1, "")
    assert error == pytest.approx(whole, rel=near)
    plain = load(source, task, dtype).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in models[0].state_dict().items())


def test_where_memory_is_shorter_only_the_weights_are_compared(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy.decoder_verify, "free_bytes", lambda device: 100_000)
    told = told_by(made(tiny(*QA), tmp_path / "b"))
    assert told is not None
    assert told.output_error is None
    assert told.weight_error > 0
    assert told.sentence().endswith("not compared: that needs 0.0 GB of memory and 0.0 GB are free.")


def not_finite(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(_weights(model))
    stored["bert.encoder.layer.1.output.dense.weight"][3, 4] = float("nan")
    save_file(stored, _weights(model), metadata={"format": "pt"})


def beyond_float16(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(_weights(model))
    stored["bert.encoder.layer.1.output.dense.weight"][3, 4] = 70_000.0
    save_file(stored, _weights(model), metadata={"format": "pt"})


def headless(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = {name: tensor for name, tensor in load_file(_weights(model)).items() if "qa_outputs" not in name}
    save_file(stored, _weights(model), metadata={"format": "pt"})


def aqlm(model: Path) -> None:
    _configure(model, quantization_config={"quant_method": "aqlm"})


def unknown_class(model: Path) -> None:
    _configure(model, architectures=["NovelForQuestionAnswering"])


def own_code(model: Path) -> None:
    _configure(model, auto_map={"AutoModelForQuestionAnswering": "modeling.NovelForQuestionAnswering"})
    (model / "modeling.py").write_text("")


def _configure(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))


def pickled(model: Path) -> None:
    _weights(model).rename(model / "pytorch_model.bin")


#: What is wrong: damage to the model, options, the error and its words.
REFUSED: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any], type[errors.MiiAzureError], str]] = {
    "a scheme that there is not": (None, {"quantise": "int3"}, errors.SpecError, "quantise: "),
    "quantised in another way": (aqlm, {}, errors.NotAvailable, "quantised by aqlm"),
    "a class that transformers has not": (
        unknown_class,
        {},
        errors.NotAvailable,
        "no attribute NovelForQuestionAnswering",
    ),
    "code of its own": (own_code, {"trust_remote_code": True}, errors.NotAvailable, "runs its own code"),
    "a model type that transformers has not": (
        lambda model: _configure(model, model_type="novel"),
        {},
        errors.ModelInconsistent,
        "'novel', which transformers does not have",
    ),
    "a head that is missing": (headless, {}, HeadMissing, "qa_outputs.bias, qa_outputs.weight would be random"),
    "pickle": (pickled, {"allow_pickle": True}, errors.NotAvailable, "no product in safetensors"),
    "a weight that is no number": (not_finite, {}, errors.WeightsCorrupt, r"layer\.1\.output\.dense\.weight holds"),
    "a weight beyond the precision": (
        beyond_float16,
        {"dtype": "float16", "instance_type": A100},
        errors.WeightsCorrupt,
        "not finite in float16",
    ),
    "a reference": (None, {"model": "azureml:bert:1", "instance_type": A100}, errors.NotAvailable, "is not opened"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_leaves_nothing_behind(what: str, model: Path, tmp_path: Path) -> None:
    damage, options, error, words = REFUSED[what]
    if damage:
        damage(model)
    source = options.pop("model", model) if "model" in options else model
    with pytest.raises(error, match=words) as caught:
        made(Path(source) if isinstance(source, Path) else source, tmp_path / "out" / "bundle", **options)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_code_that_transformers_has_itself_is_no_reason_to_refuse(model: Path, tmp_path: Path) -> None:
    own_code(model)
    assert told_by(made(model, tmp_path / "b")) is not None


@pytest.mark.parametrize(("family", "task"), [("gpt2", "text-generation"), ("stable-diffusion", "text-to-image")])
def test_families_that_are_refused(family: str, task: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(errors.NotAvailable) as caught:
        made(tiny(family, task), tmp_path / "b", task)
    assert caught.value.hint == "Leave out --quantise."


def test_a_disk_without_room(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed is what will be written, not what is read."""
    usage = namedtuple("usage", "total used free")
    size = plan(QA[1], str(tiny(*QA)), quantise="int8").profile.weight_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, size))
    with pytest.raises(errors.NotWritten, match="could not be written") as caught:
        made(tiny(*QA), tmp_path / "b")
    assert "Free some space" in caught.value.hint
    assert not (tmp_path / "b").exists()


def test_a_model_that_is_int8_already_is_served_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    first = made(tiny("llama", "text-generation"), tmp_path / "a", "text-generation")
    again = made(first / "model", tmp_path / "b", "text-generation", quantise="none")
    assert (again / WEIGHTS).read_bytes() == (first / WEIGHTS).read_bytes()
    assert mii_azure.check(again) == []
    with pytest.raises(errors.NotAvailable, match="int8 already"):
        made(first / "model", tmp_path / "c", "text-generation")
    wide, int8 = (resolve(str(folder)).weights for folder in (tiny("llama", "text-generation"), first / "model"))
    assert int8.parameters == wide.parameters
    assert (int8.kind, int8.published, wide.kind) == ("int8", "compressed-tensors", "")
