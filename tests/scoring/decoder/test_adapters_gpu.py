"""Rows of several adapters in a GPU's graphs, against the decoder on a CPU."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from scoring.decoder.decoder import Decoder
from scoring.passes.families import Tier
from tests.scoring.kernels.test_low_rank import NAMES, adapted, roomy, same, same_as_they_come_and_go

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # torch uses its own old parts


@pytest.mark.parametrize(
    ("family", "rank", "tier"),
    [("llama", 5, "fused"), ("gpt_neox", 5, "fused"), ("llama", 250, "fused"), ("llama", 5, "generic")],
)
def test_rows_of_any_adapters_share_a_graph(family: str, rank: int, tier: Tier, tmp_path: Path) -> None:
    plain = Decoder(adapted(family, tmp_path / "cpu", rank), 6, 128, tier=tier, drafts=True)
    ours = Decoder(adapted(family, tmp_path / "gpu", rank, "cuda"), 6, 128, tier=tier, drafts=True)
    same(ours, plain, NAMES)
    assert ours._cuda.graphs is ours._cuda._plain  # of the last step, in which no row had any
    assert ours._cuda._adapted.near and ours._cuda._adapted.drafts


@pytest.mark.parametrize("tier", ["fused", "generic"])
def test_adapters_come_and_go_between_replays(tier: Tier, tmp_path: Path) -> None:
    (model, others), (on_gpu, own) = roomy(tmp_path / "cpu"), roomy(tmp_path / "gpu", "cuda")
    plain = Decoder(model, 6, 128, tier=tier, drafts=True)
    same_as_they_come_and_go(Decoder(on_gpu, 6, 128, tier=tier, drafts=True), plain, own, others)
