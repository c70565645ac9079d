"""Instance types that the data do not know: described, planned, generated, and warned about."""

import pytest
from typer.testing import CliRunner

from mii_azure.checks.check import check
from mii_azure.cli.app import app
from mii_azure.errors import SpecError, UnknownInstanceType
from mii_azure.hardware.skus import find_sku
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
