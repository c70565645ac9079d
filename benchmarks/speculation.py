"""Tokens per second of one stream with and without drafts, on copying and on free texts, on one GPU or a CPU.

    python -m benchmarks.speculation [--out FOLDER]       prints the table and writes speculation.json
    python -m benchmarks.speculation --record             has SmolLM2-135M answer the prompts on this CPU

Random weights copy nothing by themselves. What a model that does would write is recorded: the answers of
SmolLM2-135M-Instruct to the prompts of `speculation_texts.json`. On a GPU an OPT of 1.3 billion parameters then has to
write these very tokens: its table of positions, which is added to the embeddings, is set so that after each place the
recorded token is the likeliest. So acceptance is a real model's, and every step reads the weights of a real shape.
Both sides run through the scheduler, greedily, in turns in one process; their tokens have to be the recorded ones.
A draft model has no lookup's luck: an OPT of 125 million parameters is told the same texts, and so is always right, or
others, and so is always wrong. These are the bounds of what any pair gains; a trained pair was not at hand.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.command_line import Parser
from benchmarks.common import device_ms, provenance, table, write
from benchmarks.decoder_shapes import CASES, Case, make
from scoring.decoder.decoder import Decoder
from scoring.decoder.drafts import SIZES
from scoring.decoder.model import DecoderModel
from scoring.decoder.verify import step_ms
from scoring.engine.row import Row
from scoring.generation.scheduler import Scheduler
from scoring.generation.settings import GenerationSettings
from scoring.passes.draft_loading import cost_of
from scoring.telemetry.statistics import Statistics

TEXTS = Path(__file__).with_name("speculation_texts.json")
NEW = 220
_TURNS = 3  # of each side
_LENGTH = 2048


class Task:
    """What the scheduler asks of a task, without texts: tokens alone are measured."""

    tokenizer: Any = None
    encoder_decoder = False
    stops = None

    def __init__(self) -> None:
        self.eos: list[int] = []
        self.statistics = Statistics()

    def generation_config(self, settings: GenerationSettings) -> tuple[GenerationConfig, None]:
        return GenerationConfig(max_new_tokens=settings["max_new_tokens"], do_sample=False), None

    def text(self, tokens: list[int], stop: Sequence[str]) -> str:
        return ""


def answers(task: Task, scheduler: Scheduler, prompts: Sequence[list[int]], new: int) -> tuple[list[list[int]], float]:
    """Tokens of prompts that run together, and the seconds from the first token of the last to the end."""
    done: dict[int, Any] = {}
    for number, ids in enumerate(prompts):
        settings = GenerationSettings((("max_new_tokens", new),), salt=str(time.perf_counter_ns()))
        row = Row({"input_ids": ids}, 0, parameters=settings, new_tokens=new)
        scheduler.add(row, lambda output, number=number: done.__setitem__(number, output))  # type: ignore[misc]
    while scheduler._prefilling:
        scheduler.step()
    began = time.perf_counter()
    while scheduler.active:
        scheduler.step()
    seconds = time.perf_counter() - began
    for output in done.values():
        if isinstance(output, Exception):
            raise output
    return [done[number][0] for number in range(len(prompts))], seconds


class Sides:
    """Two schedulers over one model: of the first, no step is drafted."""

    def __init__(self, model: Any, slots: int, length: int = _LENGTH, small: Any = None) -> None:
        self.tasks = [Task(), Task()]
        tokens = slots * length if model.device.type == "cuda" else 0
        self.decoders = [Decoder(model, slots, length, tokens=tokens, drafts=drafts) for drafts in (False, True)]
        if small is not None:
            self.decoders[1].draft = draft = Decoder(small, slots, length, tokens=tokens)
            self.decoders[1].draft_cost = cost_of(draft, self.decoders[1])
        self.schedulers = [
            Scheduler(task, decoder, decoder.capacity, reuse=False)
            for task, decoder in zip(self.tasks, self.decoders, strict=True)
        ]

    def measure(
        self, prompts: Sequence[list[int]], new: int, wanted: Sequence[list[int]] | None = None
    ) -> dict[str, Any]:
        """Tokens per second of both sides in turns, and what was drafted."""
        before = self.tasks[1].statistics.to_dict()
        found: list[list[Any]] = [[], []]
        rates: list[list[float]] = [[], []]
        for turn in range(1 + _TURNS):  # the first compiles and captures
            for side in (0, 1):
                tokens, seconds = answers(self.tasks[side], self.schedulers[side], prompts, new)
                found[side] = tokens
                rates[side] += [len(prompts) * (new - 1) / seconds] if turn else []
        after = self.tasks[1].statistics.to_dict()
        plain, drafted = map(median, rates)
        counts = {name: (after[name] - before[name]) // (1 + _TURNS) for name in ("drafted_tokens", "accepted_tokens")}
        same = found[1] == (found[0] if wanted is None else list(wanted)) and found[0] == found[1]
        return {"plain": plain, "drafted": drafted, "gain": drafted / plain, "identical": same, **counts}


@torch.no_grad()
def dictate(decoder: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Have a decoder's model write this answer after this prompt, by its table of positions."""
    decoder_model = decoder.model
    assert isinstance(decoder_model, DecoderModel)
    assert decoder_model.positions is not None
    places = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(answer), device=decoder_model.device)
    written = decoder_model.embedding[torch.tensor(answer, device=decoder_model.device)]
    decoder_model.positions[places + decoder_model.position_offset] = 40 * written


@torch.inference_mode()
def step_times(decoder: Decoder, lengths: Sequence[int] = (256, 1024, 1900)) -> list[dict[str, Any]]:
    """Milliseconds of a step by rows, fed to one sequence of each length: one token, and drafts that are all wrong."""
    found = []
    for length in lengths:
        row: dict[str, Any] = {"length": length}
        for fed in (1, 4, 8, 16, 32):
            decoder.open(0)
            decoder.prefill(0, [5 + n % 1000 for n in range(length)])
            last = decoder.sample([0]).tokens()[0]
            times = []
            for _ in range(20):
                torch.cuda.synchronize()
                began = time.perf_counter()
                if fed == 1:
                    last = decoder.step([0]).tokens()[0]
                else:
                    last = decoder.speculate([(0, [last] + [3] * (fed - 1))]).runs()[0][-1]
                times.append(1e3 * (time.perf_counter() - began))
            row[str(fed)] = median(times)
            if fed in SIZES:
                row[f"{fed} on the device"] = device_ms(decoder._cuda.graphs.drafts[fed].replay, 30)
            decoder.release(0)
        found.append(row)
    return found


#: OPT's smallest, with the vocabulary of the other.
SMALL = Case("opt", {"hidden_size": 768, "word_embed_proj_dim": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
                     "num_attention_heads": 12})  # fmt: skip


def on_gpu() -> dict[str, Any]:
    """Recorded texts by the OPT; steps by rows, and free texts of one and many streams, by the Llama."""
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    model = make(CASES["opt-1.3b"])
    sides = Sides(model, 16)
    quiet(sides.decoders[0])
    told: dict[str, Any] = {"texts": {}, "free": {}}
    for name, text in texts.items():
        dictate(sides.decoders[0], text["prompt"], text["answer"])  # both read one table
        found = sides.measure([text["prompt"]], len(text["answer"]), [text["answer"]])
        told["texts"][name] = {"tokens": len(text["answer"]), **found}
        print(name, json.dumps(told["texts"][name]), flush=True)
    told["steps"] = {"opt-1.3b": step_times(sides.decoders[1])}
    print(json.dumps(told["steps"]), flush=True)
    told["draft model"] = by_draft_model(model, {name: texts[name] for name in ("summary", "free_story")})
    del sides, model
    torch.cuda.empty_cache()
    sides = Sides(make(CASES["llama-1.1b"]), 64)
    told["steps"]["llama-1.1b"] = step_times(sides.decoders[1])
    print(json.dumps(told["steps"]["llama-1.1b"]), flush=True)
    generator = torch.Generator().manual_seed(1)
    for streams in (1, 8, 16, 64):
        prompts = [torch.randint(5, 30_000, (200,), generator=generator).tolist() for _ in range(streams)]
        told["free"][str(streams)] = sides.measure(prompts, NEW)
        print(streams, json.dumps(told["free"][str(streams)]), flush=True)
    return told


def on_cpu() -> dict[str, Any]:
    """The recorded texts by the model that wrote them."""
    from transformers import AutoModelForCausalLM

    from mii_azure.model.packaged import packaged_model

    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    sides = Sides(AutoModelForCausalLM.from_pretrained(packaged_model("smollm2"), dtype=torch.float32).eval(), 2)
    told: dict[str, Any] = {"texts": {}}
    for name, text in texts.items():
        found = sides.measure([text["prompt"]], len(text["answer"]), [text["answer"]])
        told["texts"][name] = {"tokens": len(text["answer"]), **found}
        print(name, json.dumps(told["texts"][name]), flush=True)
    return told


@torch.no_grad()
def quiet(decoder: Decoder) -> None:
    """Have random layers add little, so that the table of positions decides what comes."""
    decoder_model = decoder.model
    assert isinstance(decoder_model, DecoderModel)
    for layer in decoder_model.layers:
        for product in (layer.attention.out, layer.mlp.down):
            product.weight.mul_(0.02)


@torch.inference_mode()
def by_draft_model(model: Any, texts: dict[str, Any]) -> dict[str, Any]:
    """The recorded texts with a small model that is always right, and one always wrong; a step of each model alone."""
    sides = Sides(model, 4, small=make(SMALL))
    (plain, drafted), told = sides.decoders, dict[str, Any]()
    assert drafted.draft is not None
    quiet(drafted.draft)
    for name, text in texts.items():
        prompt, answer = text["prompt"], text["answer"]
        dictate(plain, prompt, answer)
        for kind, written in (("right", answer), ("wrong", [5 + token % 1000 for token in answer[1:]] + [5])):
            dictate(drafted.draft, prompt, written)
            told[f"{name}, {kind}"] = {"tokens": len(answer), **sides.measure([prompt], len(answer), [answer])}
            print(name, kind, json.dumps(told[f"{name}, {kind}"]), flush=True)
    steps = {"model": step_ms(plain, 60), "draft model": step_ms(drafted.draft, 60), "cost": drafted.draft_cost}
    print(json.dumps(steps), flush=True)
    return {"texts": told, "step ms": steps}


def show(told: dict[str, Any]) -> None:
    """Print the table of texts."""
    names = ("tokens", "plain", "drafted", "gain", "drafted_tokens", "accepted_tokens", "identical")
    print(table(("text", *names), [{"text": text, **one} for text, one in told["texts"].items()]))


def record() -> None:
    """Have SmolLM2-135M-Instruct answer the questions, greedily, by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mii_azure.model.packaged import packaged_model

    folder = packaged_model("smollm2")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).float().eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    texts = json.loads(TEXTS.read_text(encoding="utf-8"))
    for text in texts.values():
        asked = [{"role": "user", "content": text["question"]}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
        made = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, repetition_penalty=1.0)
        text |= {"prompt": ids, "answer": made[0, len(ids) :].tolist()}
    TEXTS.write_text(json.dumps(texts, indent=None) + "\n", encoding="utf-8")


def main() -> None:
    """Measure on what there is, print the table, write the JSON."""
    parser = Parser(__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--draft-model", action="store_true", help="that part alone; writes speculation_draft.json")
    arguments = parser.parse_args()
    if arguments.record:
        record()
        return
    if arguments.draft_model:
        texts = json.loads(TEXTS.read_text(encoding="utf-8"))
        model = make(CASES["opt-1.3b"])
        quiet(Decoder(model, 1, _LENGTH, tokens=_LENGTH))
        told = by_draft_model(model, {name: texts[name] for name in ("summary", "free_story")})
        write("speculation_draft", {**provenance(), **told}, arguments.out)
        return
    on_device, name = (on_gpu, "speculation") if torch.cuda.is_available() else (on_cpu, "speculation_cpu")
    told = on_device()
    write(name, {**provenance(), **told}, arguments.out)
    show(told)


if __name__ == "__main__":
    main()
