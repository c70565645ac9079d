"""text-ranking by decoders that write yes or no, against the logits of plain transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from scoring.config import Deployment
from scoring.errors import LoadError
from scoring.model.loader import load, load_without_weights
from scoring.passes.hf_verify import reload
from scoring.schema.registry import task_class
from scoring.sentence.ranker import FORM, JUDGES
from tests.conftest import Tiny
from tests.scoring.conftest import Serve
from tests.scoring.encoders import LONG, TEXTS, assert_agree

TASK = "text-ranking"
QUERY = "Where does Anna live?"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
#: As Qwen3's: what it knows no role of is left out.
CHAT = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
QWEN = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {}\n'
    "<Query>: {}\n<Document>: {}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
WEB = "Given a web search query, retrieve relevant passages that answer the query"


def reranker(source: Path, folder: Path, template: str = TEMPLATE, **changes: Any) -> Path:
    """Write a random decoder whose tokenizer has the tokens yes and no."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.chat_template = template
    settings = {"vocab_size": len(tokenizer), "initializer_range": 0.5, "max_position_embeddings": 400}
    config = AutoConfig.from_pretrained(source, **settings | changes)
    tokenizer.model_max_length = config.max_position_embeddings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(folder: Path, prompts: list[str], most: int | None = None) -> torch.Tensor:
    """Plain transformers' logits of yes and no after each prompt, [N, 2]."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    words = tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.inference_mode():
        made = [model(tokenizer(p, add_special_tokens=False, return_tensors="pt").input_ids) for p in prompts]
    return torch.stack([each.logits[0, -1, words] for each in made])


def scores(ranked: list[dict[str, Any]]) -> list[float]:
    return [entry["score"] for entry in sorted(ranked, key=lambda entry: entry["index"])]


@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("llama", False)])
def test_the_chat_template_writes_the_pair(family: str, tied: bool, tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = reranker(tiny(family, "conversational"), tmp_path / "model", tie_word_embeddings=tied)
    served = serve(folder, TASK, **{FORM: JUDGES})
    prompt = "<|im_start|>query\n{}<|im_end|>\n<|im_start|>document\n{}<|im_end|>\n<|im_start|>assistant\n"
    both = logits(folder, [prompt.format(QUERY, text.strip()) for text in TEXTS])
    assert_agree(scores(served.ok({"query": QUERY, "texts": TEXTS})), both.softmax(1)[:, 0].tolist())
    told = served.ok([QUERY, "b"], raw_scores=True, instruction="Be strict.")
    system = "<|im_start|>system\nBe strict.<|im_end|>\n"
    assert_agree(told, float(logits(folder, [system + prompt.format(QUERY, "b")]) @ torch.tensor([1.0, -1.0])))


def test_without_a_place_for_pairs_the_prompt_is_that_of_qwen3_reranker(
    tiny: Tiny, serve: Serve, tmp_path: Path
) -> None:
    folder = reranker(tiny("qwen3", "conversational"), tmp_path / "model", CHAT)
    served = serve(folder, TASK, **{FORM: JUDGES})
    both = logits(folder, [QWEN.format(WEB, QUERY, text) for text in TEXTS])
    assert_agree(scores(served.ok({"query": QUERY, "texts": TEXTS})), both.softmax(1)[:, 0].tolist())
    other = logits(folder, [QWEN.format("Only names.", QUERY, "b")]).softmax(1)[0, 0]
    assert_agree(served.ok([QUERY, "b"], instruction="Only names."), float(other))


def test_a_prompt_past_the_context_keeps_what_follows_the_document(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = reranker(tiny("qwen3", "conversational"), tmp_path / "model")
    served = serve(folder, TASK, **{FORM: JUDGES})
    assert served.refused({"query": QUERY, "texts": ["b", LONG * 2]})["where"] == "inputs[0].texts[1]"
    (cut,) = served.ok({"query": QUERY, "texts": [LONG * 2]}, truncation=True, raw_scores=True)
    task = served.service.task
    row = task.encode(
        task.schema.parse_input([QUERY, LONG * 2], ""), task.schema.parse_parameters({"truncate": True}), 0
    )
    assert row[0].tokens == 400
    assert task.tokenizer.decode(row[0].features["input_ids"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert cut["truncated"] is True


def test_the_folder_names_tokens_and_prompt(tiny: Tiny, serve: Serve, tmp_path: Path) -> None:
    folder = reranker(tiny("qwen3", "conversational"), tmp_path / "model")
    kinds = (
        ("base.modules.transformer.Transformer", ""),
        ("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
    )
    listed = [
        {"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.{k}"} for n, (k, p) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_LogitScore").mkdir()
    words = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["no", "yes"])
    named = {"true_token_id": words[0], "false_token_id": words[1], "module_input_name": "causal_logits"}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(named))
    prompts = {"prompts": {"web": "Search."}, "default_prompt_name": "web", "model_type": "CrossEncoder"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    prompt = (
        "<|im_start|>system\nSearch.<|im_end|>\n<|im_start|>query\n{}<|im_end|>\n<|im_start|>document\n{}<|im_end|>\n"
    )
    both = logits(folder, [(prompt + "<|im_start|>assistant\n").format(QUERY, "b")])
    assert_agree(serve(folder, TASK, **{FORM: JUDGES}).ok([QUERY, "b"]), float(both.softmax(1)[0, 1]))


@pytest.mark.parametrize(
    ("family", "template", "changes", "said"),
    [
        ("llama", CHAT, {}, "no place for a query"),
        ("gemma2", TEMPLATE, {"final_logit_softcapping": 30.0}, "changes its logits"),
        ("granite", TEMPLATE, {}, "no classifier with the layers"),
    ],
)
def test_what_cannot_judge_is_refused(
    family: str, template: str, changes: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = reranker(tiny(family, "conversational"), tmp_path / "model", template, **changes)
    deployment = Deployment("tiny", TASK, task_options={FORM: JUDGES})
    with pytest.raises(LoadError, match=said):
        task_class(TASK)(load(deployment, folder), TASK)


def test_a_tokenizer_without_the_words_is_refused(tiny: Tiny) -> None:
    with pytest.raises(LoadError, match="'yes' and 'no'"):
        load(Deployment("tiny", TASK, task_options={FORM: JUDGES}), tiny("qwen3", "conversational"))


def test_a_judge_reloaded_for_a_pass_scores_alike_and_a_front_end_makes_the_same_rows(
    tiny: Tiny, tmp_path: Path
) -> None:
    folder = reranker(tiny("qwen3", "conversational"), tmp_path / "model")
    deployment = Deployment("tiny", TASK, task_options={FORM: JUDGES})
    loaded = load(deployment, folder)
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        before = loaded.model(ids).logits
        reload(loaded.model)
        assert torch.equal(loaded.model(ids).logits, before)
    apart = replace(load_without_weights(deployment, folder), context_length=400)
    tasks = [task_class(TASK)(each, TASK) for each in (loaded, apart)]
    value, parameters = tasks[0].schema.parse_input([QUERY, "b"], ""), tasks[0].schema.parse_parameters({})
    rows = [task.encode(value, parameters, 0) for task in tasks]
    assert rows[0][0].features == rows[1][0].features
