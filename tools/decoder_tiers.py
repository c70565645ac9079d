"""Tries every causal type of the installed transformers as a tiny random model, and writes docs/decoders.md.

    .venv/bin/python -m tools.decoder_tiers [TYPE ...]

With types, prints their rows only. Takes about a minute; `make docs` leaves the page as it is.
"""

import sys
import warnings
from typing import NamedTuple

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scoring.decoder.decoder import Decoder
from scoring.decoder.generic.recurrent import in_pieces
from scoring.decoder.verify import errors, reference
from scoring.errors import LoadError
from scoring.model_files.text_part import RENAMED
from scoring.passes.base import BOUNDS
from scoring.passes.families import GENERIC_DECODE, STATIC_DECODE
from tests.tiny_causal import tiny_causal
from tools.docs import DOCS

PAGE = DOCS / "decoders.md"
TEXT = """# Decoders

Every causal type of transformers {version}, as a tiny random model in float32 on a CPU: the tier of the static decoder
that serves it, or the reason why plain `generate` does (`python -m tools.decoder_tiers` writes this page).

- **fused**: an adapter converts the model to this package's own `DecoderModel`; kernels of its own on a GPU. Mixtures
  of experts too: of one or two rows each reads its own experts' weights, more rows are grouped by expert. A model
  whose fused decoder differs from plain transformers at start, or fails there, has the generic one.
- **generic**: transformers' own modules over this package's scheduler, paged cache and sampler. Nothing is written for
  a family: at load, one forward of four tokens tells whether each layer calls transformers' attention interface once,
  in the standard way, with a causal mask or a window, and what its cache keeps: keys and values, and recurrent states.
  On a GPU its steps are graphs, over layers that Inductor compiled where that makes a step faster; heads may be up to
  512 wide, and differ by layer. Of a model that is cut over several GPUs it serves the slices, step by step without
  graphs.
- **generate**: no continuous batching, no prefix reuse.

States of convolutions, Mamba and linear attention are kept for each slot. At load, prompts and steps of several slots
are compared with plain transformers' own, token by token. Such models do without what a state of a whole sequence does
not allow: no prefix is reused, nothing is drafted, and a preempted sequence is computed from its beginning. Prompts
come in pieces, except where it says "in one piece": those modules begin anew with each, so that a long prompt is one
step, for which the streams beside it wait. On a GPU a graph of a step reads and writes its rows' states, over layers as
they are; prompts are launched, in batches of those of one length. They are not cut over several GPUs.

Prefill and cached steps of three sequences were compared with plain transformers; a relative error above {bound:g} is
"differs". A type that no tiny model could be made of, or whose plain forward fails on one, is "not tried": its own
model is tried at load like any other.

{counts}

| type | served by | reason, or largest relative error |
|---|---|---|
"""


class Row(NamedTuple):
    """Outcome for a type."""

    family: str
    outcome: str
    told: str


def tried(family: str) -> Row:
    """Try a type in the tier that serves it."""
    if family in RENAMED:
        text = tried(f"{family}_text")
        return text._replace(family=family, told=f"{text.told}; its text part, as {text.family}")
    if family in GENERIC_DECODE.refused:
        return Row(family, "generate", GENERIC_DECODE.refused[family])
    try:
        model = tiny_causal(family)
        told = reference(model)()
    except Exception as failure:
        return Row(family, "not tried", _brief(failure))
    try:
        decoder = Decoder(model, 3, 128)
        error = max(errors(decoder, told).values())
    except LoadError as refusal:
        return Row(family, "generate", refusal.message.split(": ", 1)[1].split("; nor the fused")[0].rstrip("."))
    except Exception as failure:
        return Row(family, "differs", _brief(failure))
    kept = "" if decoder.recurrent is None else "; recurrent states"
    kept += "" if in_pieces(decoder.recurrent) else ", prompts in one piece"
    return Row(family, decoder.tier if error <= BOUNDS["float32"] else "differs", f"{error:.0e}{kept}")


def page(rows: list[Row]) -> str:
    """Render the page."""
    kinds = ("fused", "generic", "generate", "differs", "not tried")
    counts = {kind: sum(row.outcome == kind for row in rows) for kind in kinds}
    told = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
    head = TEXT.format(
        version=transformers.__version__, bound=BOUNDS["float32"], counts=f"Of {len(rows)} types: {told}."
    )
    return head + "".join(f"| {row.family} | {row.outcome} | {row.told} |\n" for row in rows)


def _brief(failure: Exception) -> str:
    lines = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {lines[-1].strip()[:120]}".replace("|", "/")


def main() -> None:
    """Try all types, or those named."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    asked = sys.argv[1:]
    rows = [tried(family) for family in asked or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
    fused = {row.family for row in rows if row.outcome == "fused"}
    if not asked and set(STATIC_DECODE.served) - fused:
        sys.exit(f"not served by their adapters: {sorted(set(STATIC_DECODE.served) - fused)}")
    if asked:
        print("\n".join(" | ".join(row) for row in rows))
        return
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
