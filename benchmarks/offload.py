"""ZeRO-Inference on one GPU whose memory is capped at half the weights: seconds a step against the PCIe bound.

`python -m benchmarks.offload [--out FOLDER]` prints the table and writes offload.json. Random weights of Llama 6.7 B's
shape in fp16. A step of any batch reads all weights once over PCIe; the bound is their size over the measured rate of
pinned copies. Tokens are compared with plain transformers, which has the whole card before the cap is set.
"""

import gc
import json
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import device_ms, provenance, table, write
from benchmarks.decoder_shapes import CASES
from scoring.passes.zero_inference import ZeroInference

CAP = 0.5  # of the weights' bytes
BATCHES = (1, 16)
PROMPT, TOKENS = 32, 4
BAR = 0.5  # of the bound
COLUMNS = ("settings", "batch", "seconds a step", "tokens/s", "bound", "share of bound", "same tokens")


def build() -> Any:
    """The model in host memory; its weights are drawn on the GPU, which is quicker."""
    import transformers

    config = transformers.LlamaConfig(**CASES["llama-6.7b"].config)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).half()
    model.to_empty(device="cpu").eval()
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in model.parameters():
        drawn = torch.empty(parameter.shape, dtype=torch.float16, device="cuda").normal_(generator=generator)
        parameter.data.copy_(drawn * 0.02 if parameter.dim() > 1 else torch.ones_like(drawn))
    fresh = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    model.model.rotary_emb = fresh  # its frequencies are computed, not learned
    torch.cuda.empty_cache()
    return model


def pcie_rate() -> float:
    """Bytes per second of a large copy from pinned memory to the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")
    return source.nbytes / (device_ms(lambda: target.copy_(source, non_blocking=True), 8) / 1e3)


@torch.inference_mode()
def generate(model: Any, batch: int, tokens: int) -> list[list[int]]:
    """Greedy tokens of fixed prompts."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(5, model.config.vocab_size, (batch, PROMPT), generator=generator).cuda()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    found: list[list[int]] = out[:, PROMPT:].tolist()
    return found


def seconds(model: Any, batch: int) -> float:
    """Seconds of one more token, the prefill subtracted by a shorter run."""
    times = []
    for count in (2, TOKENS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        generate(model, batch, count)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return (times[1] - times[0]) / (TOKENS - 2)


class ZeroInferenceAsDefault(ZeroInference):
    """With DeepSpeed's own prefetch settings."""

    def _config(self, model: Any, device: str) -> dict[str, Any]:
        config = super()._config(model, device)
        zero = {key: value for key, value in config["zero_optimization"].items() if not key.startswith("stage3")}
        return config | {"zero_optimization": zero}


def run(stock: bool) -> dict[str, Any]:
    """Plain tokens first, then the cap, the pass, and the times."""
    model = build()
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    wanted = {}
    model.cuda()
    for batch in BATCHES:
        wanted[batch] = generate(model, batch, TOKENS)
    model.cpu()
    gc.collect()
    torch.cuda.empty_cache()
    rate = pcie_rate()
    torch.cuda.empty_cache()
    cap = CAP * size
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    print("loaded", rate, file=sys.stderr, flush=True)
    applied = ZeroInferenceAsDefault(forced=True).apply(model) if stock else ZeroInference(forced=True).apply(model)
    prepared = time.perf_counter() - began
    print("prepared", prepared, file=sys.stderr, flush=True)
    generate(model, 1, 2)
    rows = []
    for batch in BATCHES:
        same = generate(model, batch, TOKENS) == wanted[batch]
        step = seconds(model, batch)
        bound = size / rate
        print(batch, same, step, bound, file=sys.stderr, flush=True)
        rows.append(
            {
                "settings": "DeepSpeed's own" if stock else "ours",
                "batch": batch,
                "seconds a step": step,
                "tokens/s": batch / step,
                "bound": bound,
                "share of bound": bound / step,
                "same tokens": same,
            }
        )
    return {
        "weights_bytes": size,
        "cap_bytes": cap,
        "peak_bytes": torch.cuda.max_memory_reserved(),
        "pcie_bytes_per_s": rate,
        "prepare_seconds": prepared,
        "detail": applied.detail,
        "rows": rows,
    }


def main() -> None:
    """Each setting in a process of its own."""
    if "--child" in sys.argv:
        print(json.dumps(run(sys.argv[-1] == "stock")), flush=True)
        return
    out = Parser(__doc__, gpus=1).parse_args().out
    rows, runs = [], []
    for which in ("ours", "stock"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.offload", "--child", which], capture_output=True, text=True
        )
        line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith('{"weights')), None)
        if line is None:
            print(done.stdout[-1000:], done.stderr[-3000:], flush=True)
            continue
        runs.append(json.loads(line))
        rows += runs[-1]["rows"]
    shares = [row["share of bound"] for row in rows if row["settings"] == "ours"]
    bars = {f"share of bound >= {BAR}": max(shares, default=0.0) >= BAR}
    result = provenance() | {"runs": runs, "rows": rows, "bars": bars}
    write("offload", result, out)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
