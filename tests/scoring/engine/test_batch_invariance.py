"""An answer is the one that plain transformers gives to the text alone, whatever waits beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scoring.tasks.base import Row
from tests.conftest import Tiny
from tests.scoring.conftest import Serve, Served
from tests.scoring.encoders import TEXTS, assert_agree, oracle, random_model
from tests.scoring.generating import PROMPTS, Forwards, continuation
from tests.tiny_models import CONTEXT, FAMILIES, LABELS, auto_class

CLASSIFY = "text-classification"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,
}
_NARROW = {
    "embedding_size": 16,
    "intra_bottleneck_size": 16,
    "true_hidden_size": 16,
    "num_feedforward_networks": 2,
}
_XLNET = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.5}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.5}
_LLAMA = SMALL | {"num_key_value_heads": 2}
#: Of families that pad in ways of their own: whose tokenizer they borrow, what makes them tiny, and the batches.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "convbert": ("bert", SMALL | {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3}, "equal lengths"),
    "mobilebert": (
        "bert",
        SMALL
        | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 2},
        "equal lengths",
    ),
    "fnet": ("albert", SMALL, "equal lengths"),
    "xlnet": (
        "albert",
        {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.5},
        "any length",
    ),
    "squeezebert": ("bert", SMALL | {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2}, "any length"),
    "funnel": (
        "bert",
        {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1], "initializer_std": 0.5},
        "",
    ),
    "roformer": ("bert", SMALL | {"embedding_size": 32}, "any length"),
    "longformer": ("roberta", SMALL | {"attention_window": 8, "max_position_embeddings": CONTEXT + 18}, "any length"),
    "gpt2": ("gpt2", _GPT2, "any length"),
    "llama": ("llama", _LLAMA, "any length"),
}


def random_folder(family: str, source: Path, task: str, folder: Path, **changes: Any) -> Path:
    """A random model of a family with another's tokenizer; every weight random, padding's embedding included."""
    from transformers import AutoConfig

    tokenizer = AutoTokenizer.from_pretrained(source)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    known = {name: getattr(tokenizer, name) for name in names} | {"vocab_size": len(tokenizer)}
    if task == CLASSIFY:
        known |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = auto_class(task).from_config(AutoConfig.for_model(family, **(known | changes)))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                torch.nn.init.normal_(module.weight.data[module.padding_idx], std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kind(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`kind(family, task)` gives the folder of a tiny random model of one of KINDS."""

    def make(family: str, task: str = CLASSIFY, side: str | None = None, **changes: Any) -> Path:
        source, sizes, _ = KINDS[family]
        folder = tmp_path_factory.mktemp(family) / "model"
        borrowed = "text-generation" if source in ("gpt2", "llama") else CLASSIFY
        random_folder(family, tiny(source, borrowed), task, folder, **(sizes | changes))
        if family == "xlnet" or side:
            _set(folder / "tokenizer_config.json", padding_side=side or "left")
        return folder

    return make


def _set(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def batching(served: Served) -> dict[str, str]:
    told: dict[str, str] = served.service.metadata()["batching"]
    return told


def assert_alone(served: Served, folder: Path, task: str = CLASSIFY, **asked: Any) -> None:
    """Of texts sent together, each answer is the pipeline's to that text alone."""
    pipe = oracle(folder, task)
    alone = [pipe(text, **asked) for text in TEXTS]
    together = served.ok(TEXTS, **asked)
    assert_agree(together, [each[0] if task == CLASSIFY and "top_k" not in asked else each for each in alone])


@pytest.mark.parametrize("family", KINDS)
def test_a_classifier_answers_in_company_as_alone(family: str, kind: Callable[..., Path], serve: Serve) -> None:
    folder = kind(family)
    served = serve(folder, CLASSIFY)
    assert_alone(served, folder, top_k=None)
    expected = KINDS[family][2]
    assert not expected or batching(served)["rows"] == expected


@pytest.mark.parametrize("family", ["convbert", "mobilebert", "xlnet", "fnet"])
@pytest.mark.parametrize("task", ["token-classification", "feature-extraction"])
def test_tokens_answer_in_company_as_alone(family: str, task: str, kind: Callable[..., Path], serve: Serve) -> None:
    if (family, task) == ("fnet", "token-classification"):
        pytest.skip("its pipeline passes a mask that the model does not take")
    folder = kind(family, task)
    served = serve(folder, task)
    assert_alone(served, folder, task)


def test_attention_that_changes_with_the_length_is_that_of_the_text_alone(tiny: Tiny, tmp_path: Path) -> None:
    """BigBird's: transformers leaves a model's attention as its first short batch set it, for all that come after."""
    sizes = SMALL | {"block_size": 4, "num_random_blocks": 1}  # full attention up to 28 tokens
    folder = random_folder("big_bird", tiny("bert", CLASSIFY), CLASSIFY, tmp_path / "model", **sizes)
    texts = [
        "It rained. " * 12,
        "Rain.",
        "The old bridge was closed until noon. " * 4,
        "It rained. " * 9,
        "Rain. " * 20,
    ]
    wanted = [oracle(folder, CLASSIFY)(text, top_k=None) for text in texts]  # a fresh model for each
    served = Served(folder, CLASSIFY)
    assert_agree(served.ok(texts, top_k=None), wanted)
    assert_agree([served.ok(text, top_k=None) for text in texts], wanted)
    served.service.drain(5)


def test_what_moves_is_batched_by_equal_lengths(
    kind: Callable[..., Path], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(kind("convbert"), CLASSIFY)
    assert "padding moves" in batching(served)["reason"]
    forwards = Forwards(served, monkeypatch)
    served.ok(["a b", "b a", "a b c d e f", "a a"])
    assert sorted(forwards.sizes) == [1, 3]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("pad", ["another", "none", "impossible", "end"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_classifies_by_its_configs_padding(
    family: str, pad: str, side: str, kind: Callable[..., Path], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head looks for the padding of its config, which the tokenizer may not share, or which there is not."""
    folder = kind(family, side=side)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if pad != "none":
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(folder)
    told = {"another": 7, "none": None, "impossible": -1, "end": tokenizer.eos_token_id}[pad]
    _set(folder / "config.json", pad_token_id=told)
    served = serve(folder, CLASSIFY)
    pipe = oracle(folder, CLASSIFY)
    end = tokenizer.eos_token
    texts = [*TEXTS, f"{TEXTS[1]}{end}", f"{TEXTS[0]}{end}"]
    forwards = Forwards(served, monkeypatch)
    assert_agree(served.ok(texts, top_k=None), [pipe(text, top_k=None) for text in texts])
    assert max(forwards.sizes) >= len(TEXTS)  # and they still share a forward


@pytest.mark.parametrize(("family", "source"), [("bart", "summarization"), ("t5", "summarization")])
def test_an_encoder_decoder_classifies_in_company_as_alone(
    family: str, source: str, tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    folder = random_model(tiny(family, source), CLASSIFY, tmp_path / "model", num_labels=3)
    served = serve(folder, CLASSIFY)
    assert_alone(served, folder, top_k=None)
    assert batching(served)["rows"] == "any length"


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_harmless_to_every_family_that_is_tested(family: str, tiny: Tiny, serve: Serve) -> None:
    """So that all of them are batched as ever."""
    task = FAMILIES[family].tasks[0]
    assert batching(serve(tiny(family, task), task))["rows"] == "any length"


def test_harmless_padding_is_batched_as_ever(tiny: Tiny, serve: Serve) -> None:
    assert batching(serve(tiny("bert", CLASSIFY), CLASSIFY)) == {
        "rows": "any length",
        "reason": "padding changes no answer",
    }


# -- generation --------------------------------------------------------------------------------------------------------

_PHI = _LLAMA | {"num_key_value_heads": 4, "pad_token_id": 0, "original_max_position_embeddings": 24}
_ROPES = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0, 5.0, 9.0, 17.0],
        "original_max_position_embeddings": 24,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


@pytest.fixture(scope="module")
def rope(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny decoder whose rotary positions change past 24 tokens."""

    def make(name: str) -> Path:
        family = "phi3" if name == "longrope" else "llama"
        changes = _PHI if family == "phi3" else _LLAMA | {"max_position_embeddings": 24, "pad_token_id": 0}
        folder = tmp_path_factory.mktemp(name) / "model"
        source = tiny("llama", "text-generation")
        return random_folder(family, source, "text-generation", folder, **(changes | {"rope_parameters": _ROPES[name]}))

    return make


LONGER = (*PROMPTS, PROMPTS[2] + " " + PROMPTS[1], "A king. " * 6, "one two three four five six")


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_positions_that_change_with_the_length(
    name: str, rope: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short prompt keeps its positions beside a long one, and after one."""
    from scoring.config import Limits

    folder = rope(name)
    served = Served(folder, "text-generation", Limits(context_length=CONTEXT))
    try:
        for new in (2, 8, 20):
            wanted = [text + _fresh(folder, text, new) for text in LONGER]
            for _ in range(2):
                answers = served.ok(list(LONGER), max_new_tokens=new)
                assert [each[0]["generated_text"] for each in answers] == wanted
        forwards = Forwards(served, monkeypatch)
        served.ok(["a", "a b", "b"], max_new_tokens=2)
        assert forwards.sizes == [3]
    finally:
        served.service.drain(5)


def _fresh(folder: Path, text: str, new: int) -> str:
    """Of a model that has seen nothing before: dynamic positions remember."""
    from tests.scoring import generating

    generating.plain.cache_clear()
    return continuation(folder, "text-generation", text, max_new_tokens=new)[0]


class Capped(torch.nn.Module):
    """An encoder whose rows move each other: as experts do that take a share of a batch."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        output = self.plain(input_ids=input_ids, attention_mask=attention_mask)
        output.logits = output.logits + output.logits.mean(0, keepdim=True)
        return output


def test_rows_that_move_each_other_run_alone(tiny: Tiny) -> None:
    from scoring.config import Deployment
    from scoring.model.loader import load
    from scoring.schema.registry import task_class

    loaded = load(Deployment("x", CLASSIFY), tiny("bert", CLASSIFY))
    task = task_class(CLASSIFY)(loaded, CLASSIFY)
    wrapped = Capped(loaded.model)
    wrapped.config, wrapped.dtype, wrapped.device = loaded.model.config, loaded.model.dtype, loaded.model.device
    task.model = wrapped
    task.examine()
    assert task.company.mates == "none"
    first, second = (task.row(task.call_tokenizer("a"), 0) for _ in range(2))
    assert isinstance(first, Row)
    assert first.key != second.key
