"""Sampling on a GPU: microseconds from a row's logits to its token, as a graph of the sampler's two kernels.

    python -m benchmarks.sampling [--out FOLDER]

Logits fall off as Zipf's law in the order of a vocabulary, as those of language models do, or are all but equal, which
is the worst case for the nucleus. The floor reads the logits once.
"""

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import ceilings, device_ms, provenance, table, write
from scoring.decoder.kv_cache import SamplingParams

VOCABULARIES, ROWS = (32_000, 151_936, 262_144), (1, 64)
SAMPLINGS = {
    "greedy": SamplingParams(),
    "plain": SamplingParams(0.8, seed=1),
    "top-k 20, top-p 0.95": SamplingParams(0.6, 20, 0.95, seed=1),
    "top-k 50": SamplingParams(1.0, 50, seed=1),
    "top-p 0.95": SamplingParams(0.8, 0, 0.95, seed=1),
}
COLUMNS = ("vocabulary", "rows", "logits", *SAMPLINGS, "floor")


def launcher_of(vocabulary: int, rows: int) -> Any:
    """The launcher of a decoder of one small layer with this vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from scoring.decoder.decoder import Decoder

    config = LlamaConfig(vocab_size=vocabulary, hidden_size=128, intermediate_size=128, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128)  # fmt: skip
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    return Decoder(model, slots=rows, max_length=128)


def logits_of(kind: str, rows: int, vocabulary: int) -> torch.Tensor:
    """Logits [rows, vocabulary] in bfloat16."""
    noise = torch.randn(rows, vocabulary, device="cuda")
    if kind == "flat":
        return (0.01 * noise).bfloat16()
    rank = torch.arange(1, vocabulary + 1, device="cuda").float()
    return (12 - 1.5 * rank.log() + 1.5 * noise).bfloat16()


def sampling_us(decoder: Any, logits: torch.Tensor, sampling: SamplingParams) -> float:
    """Microseconds of a graph of the sampler's kernels."""
    rows, launcher = len(logits), decoder._cuda.launcher
    for slot in range(rows):
        decoder.open(slot, sampling)
    decoder._cuda.settle()
    launcher.buffers.slots[:rows] = torch.arange(rows, device="cuda").int()
    launcher.sample(rows, logits, advance=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            launcher.sample(rows, logits, advance=False)
    return 1e3 * device_ms(graph.replay, 30) / 10


@torch.inference_mode()
def main() -> None:
    """Measure every vocabulary, and write sampling.json."""
    parser = Parser(__doc__, gpus=1)
    chosen, card, rows = parser.parse_args(), SimpleNamespace(**ceilings()), []
    for vocabulary in VOCABULARIES:
        for count in ROWS:
            decoder = launcher_of(vocabulary, count)
            for kind in ("Zipf", "flat"):
                logits = logits_of(kind, count, vocabulary)
                row: dict[str, Any] = {"vocabulary": vocabulary, "rows": count, "logits": kind}
                row |= {name: sampling_us(decoder, logits, sampling) for name, sampling in SAMPLINGS.items()}
                rows.append(row | {"floor": 1e6 * logits.nbytes / card.bandwidth})
    print(table(COLUMNS, rows), write("sampling", provenance() | {"unit": "us", "rows": rows}, chosen.out), sep="\n")


if __name__ == "__main__":
    main()
