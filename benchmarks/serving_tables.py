"""Tables of whole answers: images, many requests at once, long prompts, memory, weights on the host, and CPUs."""

from itertools import repeat
from statistics import mean
from typing import Any

from benchmarks.cpu.neighbour import busy

Result = dict[str, Any]


def where(result: Result) -> str:
    """One sentence: device, versions, date and revision."""
    versions = result["versions"]
    return (
        f"One {result['device']}, torch {versions['torch']}, transformers {versions['transformers']}, "
        f"{result['date']}, revision {result['revision']}"
    )


def throughput(result: Result) -> str:
    """Many requests through the engine."""
    rows = [
        "| model | tokens/s | stock `generate()` | vLLM 0.20.2, quoted | floor | first token p50 / p99 ms "
        "| next token p50 / p99 ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        first, after = (f"{row[f'{name} p50']:.0f} / {row[f'{name} p99']:.0f}" for name in ("first", "next"))
        rows.append(
            f"| {row['model']} | {row['tokens/s']:,.0f} | {row['stock']:,.0f} | {row['vLLM, quoted']:,.0f} "
            f"| {row['floor']:,.0f} | {first} | {after} |"
        )
    one = result["rows"][0]
    text = (
        f"{one['requests']} requests of 16 to 256 prompt tokens and 128 new ones, greedy, all sent to the engine at "
        f"once. Stock: batches of 64. Floor: the bytes that the steps read. {where(result)}, fp16, random weights of "
        "the real shapes."
    )
    return "\n".join([*rows, "", text])


def diffusion(result: Result) -> str:
    """A whole image."""
    rows = [
        "| image | eager ms | `torch.compile` ms | ours ms | over compile | floor ms |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {row['work']} | {row['eager']:.0f} | {row['compile']:.0f} | {row['ours']:.0f} "
        f"| {row['ours/compile']:.2f}× | {row['floor']:.0f} |"
        for row in result["rows"]
    ]
    return "\n".join([*rows, "", f"A prompt in, a PNG in base64 out. {where(result)}, fp16."])


def grammars(result: Result) -> str:
    """Steps of which half of the rows are bound to grammars, beside steps of free rows."""
    rows = [
        "| run | state | sampling | free ms | half bound ms | more |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        figures = f"{row['free_ms']:.2f} | {row['half_bound_ms']:.2f} | {row['more_percent']:.1f} %"
        rows.append(f"| {row['run']} | {row['state']} ({row['revision']}) | {row['sampling']} | {figures} |")
    return "\n".join(rows)


def admission(result: Result) -> str:
    """The scheduler's own time, beside that of an earlier revision where it was measured too."""
    before = result.get("before")
    rows = [
        "| pool of blocks | prompts begin alike | admitted, µs a request | before | a step, µs a token | before |",
        "|---|---|---|---|---|---|",
    ]
    for own, old in zip(result["rows"], before["rows"] if before else repeat({}), strict=False):
        figures = " | ".join(
            f"{own[name]:.{digits}f} | {f'{old[name]:.{digits}f}' if old else '–'}"
            for name, digits in (("us/row admitted", 0), ("us/token", 1))
        )
        rows.append(f"| {own['pool']} | {own['prompts share']} | {figures} |")
    revisions = [*([before["revision"]] if before else []), result["revision"]]
    text = (
        f"Processor time of the inference thread, {result['clients']} requests at once; one core of {result['device']},"
    )
    return "\n".join([*rows, "", f"{text} revision{'s' * bool(before)} {' and '.join(revisions)}."])


def memory(result: Result) -> str:
    """Planned against measured memory."""
    rows = ["| model | slots | planned GB | measured GB | planned / measured |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        slots = row["slots"] or ""
        rows.append(
            f"| {row['model']} | {slots} | {row['planned GB']:.2f} | {row['measured GB']:.2f} "
            f"| {row['planned/measured']:.2f} |"
        )
    revisions = ", ".join(sorted({row["revision"] for row in result["rows"]}))
    text = f"With every slot, or the largest batch, at full length. One {result['device']}, revisions {revisions}."
    return "\n".join([*rows, "", text])


def offload(result: Result) -> str:
    """Weights that wait in host memory."""
    run = result["runs"][0]
    rows = ["| batch | seconds a step | tokens/s | PCIe bound, seconds | of the bound | same tokens |"]
    rows.append("|---|---|---|---|---|---|")
    rows += [
        f"| {row['batch']} | {row['seconds a step']:.3f} | {row['tokens/s']:.1f} | {row['bound']:.3f} "
        f"| {row['share of bound']:.0%} | {'yes' if row['same tokens'] else 'no'} |"
        for row in result["rows"]
    ]
    text = (
        f"Llama 6.7 B in fp16, {run['weights_bytes'] / 1e9:.1f} GB of weights, the GPU capped at "
        f"{run['cap_bytes'] / 1e9:.1f} GB ({run['peak_bytes'] / 1e9:.1f} GB were taken). {where(result)}."
    )
    return "\n".join([*rows, "", text])


def cpu(result: Result) -> str:
    """Encoders on a CPU, and how like plain transformers' their answers to text are."""
    rows = [
        "| encoder on a CPU | eager ms | ONNX Runtime ms | its int8 ms | OpenVINO int8 ms | ours ms | format "
        "| over eager | over the best int8 | floor ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        peers = " | ".join(f"{row[name]:.1f}" if name in row else "–" for name in ("ORT", "ORT int8", "OpenVINO int8"))
        rows.append(
            f"| {row['work']} | {row['eager']:.1f} | {peers} | {row['ours']:.1f} | {row['choice']} "
            f"| {row['ours/eager']:.2f}× | {row['ours/best int8']:.2f}× | {row['floor']:.1f} |"
        )
    real = next((each for each in result["starts"] if each["work"] == "MiniLM"), None)
    alike = [f"{name} {found['least']:.4f}" for name, found in real["fidelity"].items()] if real else []
    isa = result["oneDNN may use"]
    load = ", ".join(f"{each:.1f}" for each in result["load"])
    text = (
        f"{result['cores']} cores of {result['device']}{'' if isa == 'all' else f', oneDNN held to {isa}'}, "
        f"{result['threads']} threads, torch {result['versions']['torch']}, openvino {result['versions']['openvino']}, "
        f"{result['date']}, revision {result['revision']}, "
        f"load averages of 1, 5 and 15 minutes before the last model {load}. "
        "OpenVINO int8 is NNCF's, with the same texts."
        + (f" Least cosine of MiniLM's embeddings of a hundred texts: {', '.join(alike)}." if alike else "")
    )
    return "\n".join([*rows, "", text])


def cpu_families(result: Result) -> str:
    """Encoders on a CPU whose attention reads positions, and one without a stack."""
    rows = [
        "| encoder on a CPU, float32 | eager ms | products one by one ms | ours ms | over eager | run |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {row['work']} | {row['eager']:.1f} | {row['one by one']:.1f} | {row['ours']:.1f} "
        f"| {row['ours/eager']:.2f}× | {row['means'].removeprefix('by ')} |"
        for row in result["rows"]
    ]
    load = ", ".join(f"{each:.1f}" for each in result["load"])
    worst = max(row["error"] for row in result["rows"])
    text = (
        f"{result['cores']} cores of {result['device']} with {' and '.join(result['flags'])} alone, "
        f"{result['threads']} threads, torch {result['versions']['torch']}, transformers "
        f"{result['versions']['transformers']}, openvino {result['versions']['openvino']}, {result['date']}, revision "
        f"{result['revision']}, load averages of 1, 5 and 15 minutes before the last row {load}. "
        f"Largest relative error to plain transformers' answers to each row alone: {worst:.0e}."
    )
    return "\n".join([*rows, "", text])


def streams(result: Result) -> str:
    """Streams of one decoder on a CPU."""
    rows = ["| streams at once | `generate()`, one by one, tokens/s | ours tokens/s | times | equal texts |"]
    rows.append("|---|---|---|---|---|")
    rows += [
        f"| {row['streams']} | {row['generate tokens/s']:.1f} | {row['ours tokens/s']:.1f} | {row['times']:.1f} "
        f"| {row['equal texts']} |"
        for row in result["rows"]
    ]
    text = (
        f"{result['model']}, {result['new_tokens']} new tokens each, {result['machine']}, {result['date']}, revision "
    )
    return "\n".join([*rows, "", f"{text}{result['revision']}."])


def quantised(result: Result) -> str:
    """What int8 weights save and cost."""
    rows = [
        "| model | weights MB | as int8 MB | of before | weights differ | answers differ |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        before, after = row["none bytes"], row["int8 bytes"]
        rows.append(
            f"| {row['model']} | {before / 1e6:.0f} | {after / 1e6:.0f} | {after / before:.0%} "
            f"| {row['weight_error']:.2%} | {row['output_error']:.2%} |"
        )
    versions = result["versions"]
    told = f"torch {versions['torch']}, transformers {versions['transformers']}, {result['date']}"
    note = "Small models are half embeddings, which stay as they were."
    return "\n".join(
        [*rows, "", f"Relative, against the original in float32. {note} {told}, revision {result['revision']}."]
    )


def slice_alone(result: Result) -> str:
    """What one GPU tells of a model cut over two."""
    rows = [
        "| slots | whole ms | a slice, its sums left out, ms | its floor ms | 1.6 x one GPU ms | left for a sum us |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = " | ".join(f"{row[name]:.2f}" for name in ("whole ms", "a slice ms", "floor of a slice", "bar ms"))
        rows.append(f"| {row['slots']} | {cells} | {row['left for a sum, us']:.1f} |")
    took = result["sum_between_streams"]["us"]
    note = f"The sum's kernel takes {took:.1f} us between two streams of this GPU, with no link between them."
    return "\n".join([*rows, "", f"Llama 6.7 B in fp16. {note} {where(result)}."])


def long_prompts(result: Result) -> str:
    """First tokens of long prompts, and a stream beside one."""
    rows = [
        "| first token | tokens | sdpa forward ms | ours ms | over sdpa | floor ms | of the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, model in result["models"].items():
        rows += [
            f"| {name} | {row['tokens']:,} | {row['sdpa']:.0f} | {row['ours']:.0f} | {row['over sdpa']:.2f}× "
            f"| {row['floor']:.0f} | {row['floor share']:.0%} |"
            for row in model["rows"]
        ]
        beside = model["beside"]
        notes.append(
            f"A stream of {name} beside a prompt of 32,768 tokens waits {beside['longest gap']:.0f} ms at most for its "
            f"next token; the prompt's first comes after {beside['beside first']:,.0f} ms."
        )
    about = "Plain transformers computes one position's logits. Floor: the arithmetic at the card's measured rate."
    return "\n".join(
        [*rows, "", f"{where(result)}, bf16, random weights of the real shapes. {about} {' '.join(notes)}"]
    )


def changes_told(revision: str) -> str:
    """What the + of a revision means, where it has one, as a sentence and a space."""
    return "A + is for changes that were not committed when it ran. " if "+" in revision else ""


def neighbour(result: Result) -> str:
    """Generation on a CPU beside a busy process."""
    waits = {"system": "OpenMP's own", "ours": "passive, as servers of ours do"}
    rows = ["| threads wait | quiet s | beside one busy process s | of the fair share |", "|---|---|---|---|"]
    rows += [
        f"| {waits[row['waiting']]} | {row['quiet s']:.2f} | {row['busy s']:.2f} | {row['of the fair share']:.2f} |"
        for row in result["neighbour"]
    ]
    cores = result["cores"]
    note = (
        f"Eight tokens of SmolLM2-135M by plain transformers in float32, {result['device']}, {cores} cores, medians; "
        f"the fair share is {cores} of {cores + 1} parts. torch {result['versions']['torch']}, {result['date']}, "
        f"revision {result['revision']}. {changes_told(result['revision'])}{_loaded(result)}"
        "`python -m benchmarks.cpu 20 FOLDER neighbour`."
    )
    return "\n".join([*rows, "", note])


def _loaded(result: Result) -> str:
    """What a machine that was not idle means for the figures, as a sentence and a space; nothing for one that was."""
    if not busy(result["load"][0], result["cores"]):
        return ""
    loads = ", ".join(f"{each:.1f}" for each in result["load"])
    return (
        f"The load averages over 1, 5 and 15 minutes were {loads} before it began: the machine was not idle, and a "
        "share above 1 says how far the quiet figure is off. "
    )


def over_http(result: Result) -> str:
    """Clients of a server."""
    columns = ("model", "clients", "answers", "tokens/s", "first token p50 / p99 ms", "next token p50 / p99 ms")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    notes = []
    for name, model in result["models"].items():
        for row in model["rows"]:
            cells = ["" if row[f"{each} p50"] is None else f"{row[f'{each} p50']:.0f} / {row[f'{each} p99']:.0f}"
                     for each in ("first", "next")]  # fmt: skip
            way = {"whole": "whole", "stream": "streamed", "openai": "streamed, /v1"}[row["way"]]
            way += "" if row["front ends"] else ", one process"
            rows.append(f"| {name} | {row['clients']} | {way} | {row['tokens/s']:,.0f} | {cells[0]} | {cells[1]} |")
        others = sorted({f"{row['date']}, revision {row['revision']}" for row in model["rows"] if "revision" in row})
        notes.append(f"{name} {model['date']}, revision {model['revision']}")
        notes[-1] += f" (in one process {' and '.join(others)})" if others else ""
    load = f"prompts of {result['load'][0]} to {result['load'][1]} tokens, {result['load'][2]} new ones, all at once"
    text = f"`generate`, `serve`, then clients on the same machine: {load}. {where(result)}: {'; '.join(notes)}."
    return "\n".join([*rows, "", text])


def beside_vllm(result: Result) -> str:
    """Our server and vLLM's, asked in turns."""
    heads = ("first token p50 / p99 ms", "a token p50 / p99 ms", "processor µs a token")
    rows = [f"| model | server | answers | tokens/s | {' | '.join(heads)} |", "|---" * 7 + "|"]
    ways = {"completions": "whole", "openai": "streamed", "whole": "whole, /score", "stream": "streamed, /score"}
    for name, model in result["models"].items():
        for row in model["rows"]:
            cells = ["" if row[f"{each} p50"] is None else f"{row[f'{each} p50']:{form}} / {row[f'{each} p99']:{form}}"
                     for each, form in (("first", ".0f"), ("token", ".1f"))]  # fmt: skip
            cells.append(f"{row['processor us']:.0f}")
            rows.append(
                f"| {name} | {row['server']} | {ways[row['way']]} | {row['tokens/s']:,.0f} | {' | '.join(cells)} |"
            )
    load = f"prompts of {result['load'][0]} to {result['load'][1]} tokens, {result['load'][2]} new ones, all at once"
    clients = sorted({row["clients"] for model in result["models"].values() for row in model["rows"]})
    asked = (
        f"{', '.join(map(str, clients))} clients on the same machine: {load}; `/v1/completions` unless another is named"
    )
    return "\n".join([*rows, "", f"{asked}. Medians of turns after a first one. {where(result)}."])


def waits(result: Result) -> str:
    """Streams beside a long prompt over HTTP, and long prompts alone."""
    ways = {"after_it": "come with it", "before_it": "run already"}
    rows = [
        "| 64 streams | next token p50 / p99 / p99.9 / most ms | waits over 50 ms | the prompt's first token ms |",
        "|---|---|---|---|",
    ]
    for load in result["loads"]:
        times = " / ".join(f"{load[f'next {each}']:.0f}" for each in ("p50", "p99", "p99.9", "most"))
        rows.append(f"| {ways[load['way']]} | {times} | {load['over the bar']:,} | {load['long first ms']:,.0f} |")
    rows += ["", "| a prompt alone, tokens | first token ms | tokenised in ms | sdpa forward ms | over sdpa |"]
    rows.append("|---|---|---|---|---|")
    for one in result["alone"]:
        spent = one["way"]["ids ends"] - one["way"]["ids begins"] if "ids ends" in one["way"] else None
        plain = result["sdpa ms"].get(str(one["tokens"]))
        cells = ["–" if spent is None else f"{spent:,.0f}", "–" if plain is None else f"{plain:,.0f}"]
        cells.append("–" if plain is None else f"{one['ms'] / plain:.2f}×")
        rows.append(f"| {one['tokens']:,} | {one['ms']:,.0f} | {' | '.join(cells)} |")
    text = (
        f"{result['model']} by `generate` and `serve`, {result['front ends']} front ends; beside streams a prompt has "
        f"{result['loads'][0]['long tokens']:,} tokens. In the order of the run, the first on a server that had "
        f"answered nothing. {where(result)}.{' ' + result['note'] if 'note' in result else ''}"
    )
    return "\n".join([*rows, "", text])


def cache_forms(result: Result) -> str:
    """Batch invariance and a cache in FP8 beside neither."""
    forms = {"plain": "neither", "batch-invariant": "`--batch-invariant`", "fp8": "`--kv-cache-dtype fp8`"}
    contexts = list(result["plain"]["step_ms"]["256"])
    rows = [
        f"| asked for | tokens/s | cost | a step of 1 / 16 / 256 sequences at {contexts[0]} tokens, ms "
        f"| of 256 at {' / '.join(contexts[1:])} | cache, GB | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for form, told in forms.items():
        own = result[form]
        short = " / ".join(f"{own['step_ms'][size][contexts[0]]:.2f}" for size in ("1", "16", "256"))
        long = " / ".join(f"{own['step_ms']['256'][context]:.2f}" for context in contexts[1:])
        cost = "" if form == "plain" else f"{result['cost'][form]:.1%}"
        rows.append(
            f"| {told} | {mean(own['tokens_per_second']):,.0f} | {cost} | {short} | {long} "
            f"| {own['cache_bytes'] / 1e9:.2f} | {max(own['errors'].values()):.3f} |"
        )
    same, tried = sum(result["batch-invariant"]["bits"].values()), len(result["batch-invariant"]["bits"])
    text = (
        f"{result['model']}, random weights in fp16; 256 requests of 16 to 256 prompt tokens and 128 new ones through "
        f"the scheduler, prompts included. Logits of one prompt and 8 steps were the same bits in {same} of {tried} "
        "trials: among "
        "1, 3, 16, 64 and 256 rows, its prompt whole and in pieces of 128 and 50, and its last 100 tokens one by one. "
        f"{where(result)}."
    )
    return "\n".join([*rows, "", text])
