"""Proof at load that slots with recurrent states answer as plain transformers does, alone and in one step.

Whether prompts may come in pieces is found out too: some modules begin anew with every piece.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.generic.model import GenericModel
from scoring.decoder.generic.plain import plain_logits
from scoring.decoder.generic.recurrent import SlotStates
from scoring.decoder.generic.torch_backend import GenericTorchBackend
from scoring.decoder.kv_cache import KVCache

_LENGTHS, _STEPS = (9, 5, 5), 3  # tokens of prompts, two of which one batch computes, and steps of all of them
_PIECE = 4  # tokens of the first piece of a prompt
_SCANNED = (256, 512)  # tokens of prompts whose memory is measured
#: Relative errors that rounding explains: in float32, on a GPU too, whose convolutions may round it, and in 16 bits,
#: where it may change the choice of an expert. A start compares the decoder with float32 afterwards.
_EXACT, _SHORTENED, _ROUNDED = 1e-4, 1e-2, 2e-1


class Differs(Exception):
    """Difference of a model with recurrent states from plain transformers."""


@torch.inference_mode()
def proven(model: GenericModel, layers: list[Any], slots: int) -> SlotStates:
    """States for so many slots of a model whose cache has these layers; raises Differs."""
    trial = SlotStates(layers, len(_LENGTHS), model.device)
    tried = replace(model, recurrent=trial)
    ids = torch.arange(max(_LENGTHS) + _STEPS, device=model.device).mul(7).add(3).remainder(model.vocabulary)
    cache = trial.cache(None)
    tried.forward_batch(ids[None], torch.arange(len(ids), device=model.device)[None], cache, _unheard)
    trial.allocate(cache)
    if not trial.states:
        raise Differs("its recurrent layers leave no state in the cache")
    wanted = {length: plain_logits(model.module, ids[: length + _STEPS].tolist(), length) for length in set(_LENGTHS)}
    _check_steps(tried, ids, wanted)
    states = SlotStates(layers, slots, model.device)
    states.allocate(cache)
    states.pieces = _takes_pieces(tried, trial, ids)
    return states


@torch.inference_mode()
def scanned_numbers(model: GenericModel, states: SlotStates) -> int:
    """Numbers that a further token of a prompt takes while it is computed, as measured on a GPU; 0 elsewhere.

    Scans in plain torch take far more than what is known of a model's products.
    """
    if model.device.type != "cuda":
        return 0
    taken = []
    for count in _SCANNED:
        tokens = torch.zeros(1, count, dtype=torch.int64, device=model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        positions = torch.arange(count, device=model.device)[None]
        model.forward_batch(tokens, positions, states.cache(None), _unheard)
        taken.append(torch.cuda.max_memory_allocated(model.device) - before)
    few, many = taken
    return max(0, many - few) // (_SCANNED[1] - _SCANNED[0]) // model.dtype.itemsize


def _unheard(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.flatten(1)


def _back_end(model: GenericModel) -> GenericTorchBackend:
    return GenericTorchBackend(model, KVCache(model, len(_LENGTHS), max(_LENGTHS) + _STEPS))


def _check_steps(model: GenericModel, ids: Tensor, wanted: dict[int, Tensor]) -> None:
    """Prefill prompts of several lengths, and follow them by steps of all slots, in no order; raises Differs."""
    run, order = _back_end(model), list(range(len(_LENGTHS)))[::-1]
    lengths = torch.tensor([_LENGTHS[slot] for slot in order], device=model.device)
    parts = [(slot, 0, _LENGTHS[slot]) for slot in order]
    found = [run.prefill(parts, torch.cat([ids[:count] for _, _, count in parts]))]
    slots = torch.tensor(order, device=model.device)
    for number in range(_STEPS):
        run.state.lengths[slots], run.state.tokens[slots] = (lengths + number).int(), ids[lengths + number]
        found.append(run.step(slots, max(_LENGTHS) + number + 1))
    right = [wanted[_LENGTHS[slot]][_LENGTHS[slot] - 1 :] for slot in order]
    error = _relative(torch.stack(found, 1), torch.stack(right))
    if not error <= _bound(model):
        raise Differs(f"steps of several slots differ from plain transformers by {error:.1e}")


def _takes_pieces(model: GenericModel, trial: SlotStates, ids: Tensor) -> bool:
    """True if a prompt in two pieces is answered as in one, and leaves the same states in the first layer."""
    run, count, first = _back_end(model), max(_LENGTHS), trial.states[0].layer

    def left(slot: int) -> list[Tensor]:
        pairs = zip(trial.states, trial.rows, strict=True)
        return [rows[slot].clone() for state, rows in pairs if state.layer == first]

    whole = run.prefill([(0, 0, count)], ids[:count])
    run.prefill([(1, 0, _PIECE)], ids[:_PIECE])
    logits = run.prefill([(1, _PIECE, count - _PIECE)], ids[_PIECE:count])
    pairs = [(logits, whole), *zip(left(1), left(0), strict=True)]
    return max(_relative(one, other) for one, other in pairs) <= _bound(model)


def _bound(model: GenericModel) -> float:
    if model.dtype != torch.float32:
        return _ROUNDED
    return _EXACT if model.device.type == "cpu" else _SHORTENED


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm().clamp_min(1e-12))
