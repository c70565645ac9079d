"""The benchmark of long prompts drives the scheduler by stand-ins for rows and tasks, which must keep what it reads."""

import torch
import transformers

from benchmarks.long_prompts import first_ms, gaps_ms
from scoring.decoder.decoder import Decoder


@torch.inference_mode()
def test_first_tokens_and_the_gaps_of_a_stream_are_timed() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, vocab_size=32_000, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8192,
    )  # fmt: skip
    decoder = Decoder(transformers.LlamaForCausalLM(config).eval(), 2, 8192)
    assert first_ms(decoder, 300, 1) > 0
    told = gaps_ms(decoder, 600)
    assert len(told["gaps"]) >= 600 // 128
    assert round(told["longest gap"], 1) == max(told["gaps"])
    assert decoder.tables.pool.used == 0
