"""The stand-in for a GPU's decoder that `benchmarks.host_side` measures the host with; its figures need quiet cores."""

from benchmarks.host_side import InstantDecoder
from tests.conftest import Tiny
from tests.scoring.conftest import Served

NEW = 70  # more than a block of the cache


def test_the_scheduler_serves_rows_on_a_decoder_that_computes_nothing(tiny: Tiny) -> None:
    served = Served(tiny("gpt2", "text-generation"), "text-generation")
    decoder = InstantDecoder(4, range(5, 50), 0.0)
    served.service.loaded.runtime.decoder = decoder  # type: ignore[assignment]
    task = served.service.task
    parameters = task.schema.parse_parameters({"max_new_tokens": NEW, "ignore_eos": True})
    rows = [row for text in ("once", "upon", "a time") for row in task.encode(text, parameters, 0)]
    try:
        outputs = served.service.engine.submit(rows).future.result(30)
    finally:
        served.service.drain(5)
    assert [len(tokens) for (tokens,) in outputs] == [NEW] * 3
    assert {token for (tokens,) in outputs for token in tokens} <= set(range(5, 50))
    assert decoder.lengths == [0] * 4
    assert len(set(map(tuple, (tokens for (tokens,) in outputs)))) == 3  # the stand-in's, not the model's
