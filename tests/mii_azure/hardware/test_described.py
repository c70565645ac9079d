"""Instance types that the data do not know: described, planned, generated, and warned about."""

import json

import pytest
from typer.testing import CliRunner

from mii_azure.checks.check import check
from mii_azure.cli.app import app
from mii_azure.errors import DoesNotFit, SpecError, UnknownInstanceType
from mii_azure.hardware.described import named_size
from mii_azure.hardware.skus import all_skus, find_sku
from mii_azure.planning.planner import plan
from mii_azure.sdk.generate import generate
from tests.mii_azure.bundles import rendered, spec_and_plan

H200 = {
    "instance_type": "Standard_ND96isr_H200_v5",
    "cores": 96,
    "ram": 1850,
    "disk": 28_000,
    "gpus": 8,
    "gpu_memory": 141,
    "gpu_bandwidth": 4800,
    "gpu_tflops": 989,
    "gpu_capability": 9.0,
}
CPU = {"instance_type": "Standard_D8as_v9", "cores": 8, "ram": 32, "disk": 64}


def test_a_described_machine_is_planned_like_one_of_the_data():
    same = find_sku("Standard_ND96isr_H100_v5")
    _, made = spec_and_plan("text-generation", **H200)
    _, known = spec_and_plan("text-generation", instance_type=same.name)
    assert (made.device, made.image, made.dtype) == (known.device, known.image, known.dtype)
    assert made.memory.available > known.memory.available
    assert made.sku.gpu_memory_gb == 141
    (why,) = (each for each in made.decisions if each.what == "instance type")
    assert "Described by you" in why.reason
    files = rendered("text-generation", **H200)
    assert 'TORCH_CUDA_ARCH_LIST="9.0"' in files["environment/Dockerfile"]
    assert 'instance_type: "Standard_ND96isr_H200_v5"' in files["deployment.yml"]


def test_a_bundle_of_it_is_generated_and_warned_about(tiny, tmp_path):
    model = str(tiny("bert", "question-answering"))
    bundle = generate("question-answering", model, "my-qa", output=tmp_path / "bundle", **CPU)
    (finding,) = check(bundle)
    assert (finding.id, finding.severity) == ("MII201", "warning")


def test_without_a_description_it_is_told_how():
    with pytest.raises(UnknownInstanceType, match="describe it by --cores"):
        find_sku("Standard_ND96isr_H200_v5")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({**CPU, "disk": None}, "described by disk too"),
        ({**CPU, "gpus": 1, "gpu_memory": 80}, "gpu_bandwidth and gpu_tflops and gpu_capability"),
        ({**CPU, "gpu_memory": 80}, "gpus does not say how many"),
        ({**CPU, "instance_type": None}, "does not name it"),
        ({**CPU, "instance_type": "Standard_F8s_v2"}, "needs no description"),
    ],
)
def test_half_a_description_is_refused(tiny, options, told):
    with pytest.raises(SpecError, match=told):
        plan("fill-mask", str(tiny("bert", "fill-mask")), **options)


def test_the_flags_describe_it(tiny):
    words = [word for key, value in CPU.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    given = ["plan", "--task", "fill-mask", "--model", str(tiny("bert", "fill-mask")), *words]
    done = CliRunner().invoke(app, [*given, "--verbose"])
    assert done.exit_code == 0, done.output
    assert "Described by you" in done.stdout


NEWER = "Standard_ND96isr_H200_v5"


@pytest.mark.parametrize("name", list(all_skus()))
def test_names_of_the_data_say_what_the_data_say(name):
    read, sku = named_size(name), find_sku(name)
    assert read is not None
    assert (read.name, read.gpus) == (sku.name, sku.gpu is not None)
    assert read.cores == sku.cores or sku.name.startswith("Standard_DS")  # older names count otherwise


@pytest.mark.parametrize(
    ("name", "cores"), [(NEWER, 96), ("nd96isr_mi300x_v5", 96), ("Standard_E8-4s_v9", 4), (" Standard_NC2_X_v9 ", 2)]
)
def test_names_of_azures_form_are_read(name, cores):
    read = named_size(name)
    assert read is not None
    assert read.cores == cores
    assert read.name.strip().startswith("Standard_")


@pytest.mark.parametrize(
    "name",
    ["", "H200", "gpu", "Standard_", "Standard_T4", "Standard_NC0_v9", "Standard-NC4as-T4-v3", "NC4as_T4", "x\n"],
)
def test_other_names_are_not(name, tiny):
    assert named_size(name) is None
    if name:
        with pytest.raises(UnknownInstanceType):
            plan("fill-mask", str(tiny("bert", "fill-mask")), instance_type=name)


def test_by_its_name_alone_it_is_planned_as_the_smallest_that_holds_the_model():
    _, made = spec_and_plan("text-generation", instance_type=NEWER)
    _, like = spec_and_plan("text-generation", instance_type=made.sku.assumed_like)
    assert (made.fits, made.outlook, like.fits) == (None, None, True)
    settled = (
        "device",
        "image",
        "dtype",
        "memory",
        "tensor_parallel",
        "max_batch_tokens",
        "slots",
        "request_timeout_ms",
    )
    assert [getattr(made, each) for each in settled] == [getattr(like, each) for each in settled]
    assert (made.instance_type, made.sku.cores, made.sku.name) == (NEWER, 96, NEWER)
    assert all(each.forecast for each in made.passes)
    (why,) = (each.reason for each in made.decisions if each.what == "instance type")
    assert f"those of {made.sku.assumed_like}" in why
    assert "fit unknown" in repr(made)


def test_its_kernels_run_on_later_gpus_too():
    files = rendered("text-generation", instance_type=NEWER)
    assert 'TORCH_CUDA_ARCH_LIST="7.5+PTX"' in files["environment/Dockerfile"]
    assert f'instance_type: "{NEWER}"' in files["deployment.yml"]


def test_of_another_series_it_has_no_gpus():
    _, made = spec_and_plan("fill-mask", instance_type="Standard_D8as_v9")
    assert (made.device, made.sku.gpu, made.sku.cores) == ("cpu", None, 8)


def test_a_model_that_no_known_type_holds_wants_a_description(monkeypatch):
    monkeypatch.setattr("mii_azure.planning.memory.smallest_gpu", lambda *_: None)
    monkeypatch.setattr("mii_azure.planning.memory.sliced", lambda *_: None)
    with pytest.raises(DoesNotFit, match="Only the name") as caught:
        spec_and_plan("text-generation", instance_type=NEWER)
    assert "--gpu-memory" in caught.value.hint


@pytest.mark.parametrize("verb", ["plan", "generate"])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_first_line_warns_and_names_what_is_near(tiny, tmp_path, verb, as_json):
    given = [
        "--task",
        "fill-mask",
        "--model",
        str(tiny("bert", "fill-mask")),
        "--instance-type",
        "Standard_NC4as_T4_v4",
    ]
    given += ["--name", "near", "--output", str(tmp_path / "near")] if verb == "generate" else []
    done = CliRunner().invoke(app, [verb, *given, *(["--json"] if as_json else [])])
    assert done.exit_code == 0, done.output
    first = done.stderr.splitlines()[0]
    assert first.startswith("warning: ")
    assert all(told in first for told in ("'Standard_NC4as_T4_v4'", "Standard_NC4as_T4_v3", "--gpu-memory"))
    if not as_json:
        assert "fits" in done.stdout
        assert "unknown, the data do not know Standard_NC4as_T4_v4: in float16 it needs" in done.stdout
        assert verb == "plan" or "assumes   what fits Standard_NC4as_T4_v3" in done.stdout
    elif verb == "plan":
        told = json.loads(done.stdout)
        assert (told["fits"], told["machine"]["assumed_like"]) == (None, "Standard_NC4as_T4_v3")


def test_amds_gpus_are_told_of(tiny):
    given = ["plan", "--task", "fill-mask", "--model", str(tiny("bert", "fill-mask"))]
    done = CliRunner().invoke(app, [*given, "--instance-type", "Standard_ND96isr_MI300X_v5"])
    assert done.exit_code == 0, done.output
    assert "AMD's GPUs" in done.stderr.splitlines()[0]


def test_python_warns_too_and_check_does(tiny, tmp_path):
    model = str(tiny("bert", "fill-mask"))
    with pytest.warns(UserWarning, match="Standard_ND96isr_H200_v5.*Nearest"):
        bundle = generate("fill-mask", model, "my-mask", output=tmp_path / "bundle", instance_type=NEWER)
    assert {(each.id, each.severity) for each in check(bundle)} == {("MII201", "warning")}


def test_a_report_of_it_draws_no_memory(tiny, tmp_path):
    given = ["plan", "--task", "fill-mask", "--model", str(tiny("bert", "fill-mask")), "--instance-type", NEWER]
    done = CliRunner().invoke(app, [*given, "--report", str(tmp_path / "plan.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "plan.html").read_text()
    assert "Memory that a plan may use" not in text
    assert "do not know" in text
