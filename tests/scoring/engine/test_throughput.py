"""The throughput benchmark's path on a CPU with a tiny model; its figures need a GPU."""

from pathlib import Path

import pytest
import torch

from benchmarks.throughput import Load, floor, measure, serve, stock, write_folder

CONFIG = {
    "vocab_size": 3000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def test_every_figure_comes_of_the_requests_asked_for(tmp_path: Path) -> None:
    load = Load(requests=6, shortest=4, longest=50, new=5, stock_batch=3)
    one, other = load.texts(), load.texts()
    assert [len(text) for text in one] == [len(text) for text in other]
    assert not set(one) & set(other)  # a run finds nothing of another's prompts on the slots
    write_folder("LlamaForCausalLM", CONFIG, torch.float32, "cpu", tmp_path)
    service = serve(tmp_path, load, "float32")
    row = measure(service, load, rounds=1)
    decoder = service.loaded.runtime.decoder
    assert decoder.slots == load.requests
    assert row["tokens/s"] * row["runs s"][0] == pytest.approx(load.requests * load.new)
    assert row["with prompts"] * row["runs s"][0] == pytest.approx(load.requests * load.new + row["prompt tokens"])
    assert 6 * 4 <= row["prompt tokens"] <= 6 * 50
    assert 0 < row["first p50"] <= row["first p99"]
    assert 0 < row["next p50"] <= row["next p99"]
    told = row["phases"]
    assert told["open slot"]["calls"] == load.requests
    assert told["step"]["calls"] >= load.new - 1
    assert told["step"]["host ms"] < told["whole step"]["host ms"] < told["run"]["host ms"]
    assert vars(decoder).keys().isdisjoint({"step", "sample", "open", "prefill_many"})  # nothing stays wrapped
    assert stock(service, load) > 0
    counted = floor(service, load, {"peak": 1e12, "bandwidth": 1e12})
    weights = decoder.model.step_bytes() * (load.new - 1) / 1e12
    assert 0 < counted < load.requests * load.new / weights
    service.drain(5)
