"""What launchers compute when they are made, on any machine: no kernel runs."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoring.decoder import chunk_size
from scoring.decoder.adapters.builders import build
from scoring.decoder.generic.probe import probe
from scoring.decoder.kv_cache import KVCache
from tests.scoring.decoder.test_adapters import tiny
from tests.tiny_causal import tiny_causal
from tests.triton_stub import launchers_of


def test_a_generic_models_launchers_read_no_norms() -> None:
    with launchers_of("scoring.decoder.generic.cuda_backend") as backend:
        model = probe(tiny_causal("olmo"), 128, "")
        state = KVCache(model, 3, 128)
        made = backend.GenericStep(model, state, 3), backend.GenericPrefiller(model, state)
        assert [each._gains for each in (*made, backend.GenericDraftStep(model, state))] == [{}] * 3


def test_only_triton_products_have_constants_of_norms(tmp_path: Path) -> None:
    with launchers_of("scoring.decoder.fixed_order") as fixed:
        model = build(tiny("gpt2", tmp_path), 128)
        state = KVCache(model, 3, 128)
        assert fixed.FixedStep(model, state, 3, pdl=False)._gains == {}
        assert len(fixed.Launcher(model, state, 3, pdl=False)._gains) == 2 * len(model.layers) + 1


@pytest.mark.parametrize("torn", [-1, 0, 60])
def test_a_product_is_cublas_only_after_a_million_equal_outputs(torn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output of the `torn`-th draw differs."""
    x, weight, draws = torch.empty(1, 64), torch.randn(1000, 64), count()
    with launchers_of("scoring.decoder.fixed_order") as fixed:

        def multiply(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *_: object) -> None:
            torch.mm(x, weight.t(), out=out)
            out[0, 7] += next(draws) == torn

        monkeypatch.setattr(fixed, "multiply", multiply)
        assert fixed._alike(x, weight, torch.empty(1, 1000)) is (torn < 0)
    assert next(draws) == (torn + 1 if torn >= 0 else 1049)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [1, 8, 64, 65, 256])
def test_adapters_of_any_rank_fit_in_shared_memory(rank: int, dtype: torch.dtype) -> None:
    """A tile of the second matrix is what a matrix product keeps there: an L4 has 99 KiB."""
    with launchers_of("scoring.decoder.adapter_step") as adapter_step:
        tiles, like = adapter_step.Tiles(2, 16, torch.empty(3, 2), 2), torch.empty(0, dtype=dtype)
        told = adapter_step._shared(rank, tiles, like, False)
        assert told["RP"] * adapter_step.SPAN * like.itemsize <= 64 << 10
        assert told["RP"] >= min(rank, 32)


def test_a_piece_beside_streams_is_one_graph_with_its_spans() -> None:
    """Launch by launch, it kept the host busy for 28 ms."""
    ran: list[Any] = []
    with launchers_of("scoring.decoder.cuda_backend") as cuda_backend:
        own = object.__new__(cuda_backend.CudaBackend)
        graph = SimpleNamespace(replay=lambda: ran.append("replayed"))
        graphs = cuda_backend.Graphs(spanned={(512, 65_536): graph})
        own._kind = lambda slots: graphs
        own._tell = lambda parts, spans=(): ran.append(spans)
        two = [(0, 32_768), (32_768, 32_768)]
        spans = lambda count, position, alone, rows: two if alone and position > 65_536 else []  # noqa: E731
        attending = SimpleNamespace(spans=spans)
        own.prefiller = SimpleNamespace(attending=attending, piece=lambda rows, runs: ran.append((rows, runs)))
        own._enqueue([(3, 70_000, range(512))])
        own._enqueue([(3, 70_000, range(300))])  # padded, as the last piece of a prompt
        assert ran == 2 * [[two], "replayed"]
        ran.clear()
        own._enqueue([(3, 70_000, range(200))])  # of the size below, which is not captured
        own._enqueue([(3, 70_000, range(504)), (1, 0, range(8))])  # beside a short prompt
        assert ran == [[two], (256, [(0, 200, two)]), [two, []], (512, [(0, 504, two), (504, 8, [])])]


def test_pieces_in_graphs_have_every_number_of_keys_in_spans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_size, "takes_spans", lambda model: True)
    with launchers_of("scoring.decoder.prompt_attention") as prompt_attention:
        own = object.__new__(prompt_attention.ChunkAttention)
        own.model, own.rows, own.state = SimpleNamespace(), 1024, SimpleNamespace(narrow=False, max_length=131_072)
        own._few, own._part = 1024, range(15)
        sizes = (256, 512, 1024)
        assert own.in_graphs() == {(count, keys): keys for keys in range(8192, 131_072, 8192) for count in sizes}
        own.state.max_length = 17_000  # of which a second span leaves too little
        assert own.in_graphs() == {(count, 8192): 8192 for count in sizes}
        own.rows = own._few = 512
        assert own.in_graphs() == {(256, 8192): 8192, (512, 8192): 8192}
        own.state.narrow = True
        assert own.in_graphs() == {}


def test_a_small_chunks_spans_are_computed_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 queries over 32,768 keys took cuDNN as long as 512."""
    monkeypatch.setattr(chunk_size, "takes_spans", lambda model: True)
    with launchers_of("scoring.decoder.prompt_attention") as prompt_attention:
        own = object.__new__(prompt_attention.ChunkAttention)
        own.model, own.rows, own.state = SimpleNamespace(), 8192, SimpleNamespace(narrow=False, max_length=131_072)
        own._few, own._part = 1024, range(6)
        found = own.spans(300, 50_000, True, 512)
        assert found == [(keys, 8192) for keys in range(0, 49_152, 8192)]
        assert prompt_attention._together(found, 32_768) == [(0, found[:4]), (4, found[4:])]
        assert prompt_attention._together(found, 0) == [(at, [span]) for at, span in enumerate(found)]
        mixed = own.spans(2048, 50_000, True, 2048)
        assert mixed == [(0, 32_768), (32_768, 8192), (40_960, 8192)]
        assert [len(some) for _, some in prompt_attention._together(mixed, 32_768)] == [1, 1, 1]
        assert prompt_attention._together([], 32_768) == []


def test_a_part_with_a_long_prefix_leaves_all_its_spans_to_cudnn_if_no_other_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its programs would be too few: 512 tokens behind 24,000 keys took as long as 8,192 tokens' would."""
    monkeypatch.setattr(chunk_size, "takes_spans", lambda model: True)
    model: Any = SimpleNamespace()
    assert chunk_size.spans_of(model, 131_072, 20, 20_000, alone=True) == [(0, 8192), (8192, 8192)]
    assert chunk_size.spans_of(model, 131_072, 300, 50_000) == [(0, 32_768)]
    assert chunk_size.spans_of(model, 131_072, 20, 20_000) == []
