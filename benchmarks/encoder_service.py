"""A service over a model in memory, with a tokenizer of its vocabulary's size, for end-to-end times."""

import json
import time
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scoring.api.dialects import parse, render
from scoring.api.service import Service
from scoring.config import Deployment
from scoring.model.loaded import Loaded
from scoring.schema.registry import task_class
from scoring.strict_json.body import dumps, read_json


def tokenizer(vocabulary: int, pad: int, context: int) -> Any:
    """A WordPiece tokenizer as BERT's, its words made up; `pad` is the padding token's id."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    special[0], special[pad] = special[pad], special[0]
    words = special + [f"w{number:05d}" for number in range(vocabulary - len(special))]
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # type: ignore[arg-type]
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def serve(model: Any, task: str, length: int) -> tuple[Service, str]:
    """A started service over `model`, and a body whose text has `length` tokens.

    Batches are padded on the CPU: the graphed forward copies them through pinned memory in one transfer.
    """
    config = model.config
    deployment = Deployment(name="bench", task=task, dtype="float16")
    loaded = Loaded(model, tokenizer(config.vocab_size, config.pad_token_id, 512), torch.device("cpu"), 512, {})
    service = Service(deployment, loaded, task_class(task)(loaded, task), {})
    service.start()
    words = [f"w{(7919 * number) % 20000:05d}" for number in range(length - 2)]
    if task == "fill-mask":
        words[length // 2] = "[MASK]"
    return service, json.dumps({"inputs": " ".join(words)})


def stages(service: Service, body: str, calls: int = 50) -> dict[str, float]:
    """Median milliseconds of each stage of an answer: encode, run (queue, copies, model, one sync), decode."""
    task = service.task
    times: dict[str, list[float]] = {"encode": [], "run": [], "decode": []}
    for _ in range(calls):
        began = time.perf_counter()
        call = parse(read_json(body), task.schema)
        rows = task.encode(call.inputs[0], call.parameters, 0)
        encoded = time.perf_counter()
        outputs = service.engine.submit(rows).future.result(30)
        ran = time.perf_counter()
        answer = task.decode(call.inputs[0], call.parameters, rows, outputs)
        dumps(render(call, [answer], task.collect, task.plain))
        for name, seconds in zip(times, (encoded - began, ran - encoded, time.perf_counter() - ran), strict=True):
            times[name].append(seconds)
    return {name: 1e3 * median(values) for name, values in times.items()}
