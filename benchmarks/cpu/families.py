"""Encoders whose attention reads positions, or that have no stack: eager, products one by one, and ours, on a CPU.

    python -m benchmarks.cpu.families [SECONDS a row] [FOLDER for the JSON] [NAME ...]

Random weights of the published base shapes, cut to four layers and a small vocabulary, float32. Times are milliseconds
of a forward: plain transformers' median, and medians of the others' multiples of it in a round. "One by one" pads
and replaces each product alone; errors are relative to plain transformers' answers to each row alone.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scoring.limits import cpus

BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 1000,
}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
    "max_position_embeddings": 512,
}
_MODERN = {
    "intermediate_size": 1152,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "DeBERTa-v3-base": ("DebertaV2Model", _DEBERTA),
    "ModernBERT-base": ("ModernBertModel", _MODERN),
    "MPNet-base": ("MPNetModel", {"max_position_embeddings": 514, "pad_token_id": 1}),
    "NomicBERT": ("NomicBertModel", {"hidden_act": "silu"}),
    "GTE-base": ("GteModel", {}),
    "ALBERT-base": ("AlbertModel", {"embedding_size": 128, "hidden_act": "gelu_new"}),
}
WORK = {"1 x 32": [32], "1 x 128": [128], "16 x 8-128": [8 * (number + 1) for number in range(16)]}
COLUMNS = ("work", "eager", "one by one", "ours", "ours/eager", "error")


@contextmanager
def _one_by_one() -> Iterator[None]:
    from scoring.encoder import cpu_autotune

    kept = cpu_autotune._stack, cpu_autotune.by_length
    cpu_autotune._stack, cpu_autotune.by_length = lambda base: None, lambda plain: plain
    try:
        yield
    finally:
        cpu_autotune._stack, cpu_autotune.by_length = kept


def rows(name: str, budget_s: float) -> Iterator[dict[str, Any]]:
    """Rows of one model, each as it is measured."""
    import torch
    import transformers

    from benchmarks.cpu.forwards import batch_of
    from scoring.encoder import cpu_autotune
    from scoring.encoder.verify import answers, reference, relative_error

    architecture, config = SHAPES[name]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = cls(cls.config_class(**BASE | config)).eval()
    given = {work: batch_of(lengths, model.config.vocab_size, 5) for work, lengths in WORK.items()}
    told = {work: reference(model, [batch])() for work, batch in given.items()}
    with _one_by_one():
        before = cpu_autotune.prepare(model, "float32")
    ours = cpu_autotune.prepare(model, "float32")
    ways = [cpu_autotune.Variant("eager", []), before, ours]
    for work, batch in given.items():
        ours.on()
        error = max(relative_error(answers(model, each), wanted) for each, wanted in told[work])
        ours.off()
        eager_ms, before_ms, ours_ms = (times[0] for times in cpu_autotune._race(model, ways, [batch], budget_s))
        yield {
            "work": f"{name}, {work}",
            "eager": eager_ms,
            "one by one": before_ms,
            "ours": ours_ms,
            "ours/eager": eager_ms / ours_ms,
            "error": error,
            "means": ours.means.strip(", ") or "by length",
        }


def main() -> None:
    """Measure the models that are named, or all; each row is printed and kept as it comes."""
    cpus.settle()  # as a server does, before torch is imported
    from benchmarks.command_line import RESULTS
    from benchmarks.common import table, write
    from benchmarks.cpu.__main__ import provenance

    budget_s = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS
    path = folder / "cpu-families.json"
    kept: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    for name in sys.argv[3:] or SHAPES:
        for row in rows(name, budget_s):
            kept = [*(each for each in kept if each["work"] != row["work"]), row]
            write("cpu-families", {"rows": kept, **provenance()}, folder)
            print(table(COLUMNS, [row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
