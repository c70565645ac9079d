"""Weights shipped in int8 on a GPU: copied there as int8, widened there to the same numbers as on a CPU."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from mii_azure.quantize.writer import Writer
from scoring.decoder.verify import reference
from scoring.passes.static_decode import StaticDecode
from scoring.passes.weight_only import WeightOnly
from scoring.quantization.loading import from_pretrained
from tests.scoring.decoder.test_adapters import tiny

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_pass_adds_no_more_than_a_kernel_does(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every product of a step is shipped in int8: the output matrix is not the table of inputs."""
    wide = tiny(family, tmp_path)
    wide.config.tie_word_embeddings = False
    source, target = tmp_path / "wide", tmp_path / "int8"
    type(wide)(wide.config).save_pretrained(source)
    target.mkdir()
    Writer(source, target, dtype).write()
    options = {"dtype": dtype, "local_files_only": True}
    on_cpu = from_pretrained(type(wide), target, **options)
    model = from_pretrained(type(wide), target, device_map={"": torch.device("cuda", 0)}, **options).eval()
    for name, tensor in on_cpu.state_dict().items():
        assert torch.equal(model.state_dict()[name].cpu(), tensor), name
    told, decode = reference(model), StaticDecode(slots=2, max_length=64)
    decode.apply(model)
    exact = decode.verify(model, told)
    told_ms = iter((2.0, 1.0))
    int8 = WeightOnly(decode, lambda _: next(told_ms))
    int8.apply(model)
    assert int8.verify(model, told) <= 2 * max(exact, told().own_error) + 1e-3
