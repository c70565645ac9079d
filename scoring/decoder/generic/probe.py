"""Finds out by one forward of a few tokens whether a model's attention is standard, and what each layer's is like."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from scoring.decoder.adapters.parts import changing_rotary
from scoring.decoder.generic.interface import PROBED, MaskFunction, configs_of, listening
from scoring.decoder.generic.model import GenericLayer, GenericModel, own_forward
from scoring.decoder.generic.proof import Differs, proven, scanned_numbers
from scoring.decoder.generic.recurrent import KINDS, cache_name, kinds_of, scans_of, takes_positions
from scoring.decoder.layer_groups import Kept
from scoring.decoder.model import Attention, Linear
from scoring.decoder.torch_attention import attention
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.errors import LoadError
from scoring.passes.families import LONGEST_HEAD

_TOKENS = 4

#: What layers tell their attention that changes nothing here, beside what `_attention` reads.
_IGNORED = frozenset(
    ("cache_position", "position_ids", "position_embeddings", "use_cache", "output_attentions", "past_key_values",
     "output_router_logits", "output_hidden_states", "return_dict", "layer_idx", "is_causal", "dropout",
     "scaling", "sliding_window", "softcap", "s_aux", "logits_to_keep")
)  # fmt: skip


class Unlike(Exception):
    """Reason why the cache cannot serve a model's attention."""


@dataclass
class _Call:
    """Attention call of a layer: its queries, keys and values [1, heads, T, D], and what it means."""

    module: Any
    q: Tensor
    k: Tensor
    v: Tensor
    rule: Attention

    def reads(self, other: "_Call") -> bool:
        """True if the keys and values are those of another call, and seen as far."""
        return self.k is other.k and self.v is other.v and self.rule.window == other.rule.window


def probe(
    model: Any, length: int, unfit: str = "", team: TensorParallelGroup | None = None, slots: int = 1
) -> GenericModel:
    """Describe a model, or this rank's slice of it, for the generic tier; `slots` will hold `length` tokens each.

    Raises LoadError if its attention is not standard, with the reason, and with that against the fused tier.
    """
    try:
        return _described(model, length, team, slots)
    except (Unlike, Differs) as reason:
        told = str(reason)
    except Exception as failure:  # whatever a model's own code raises for such a forward
        told = f"its forward fails over flat rows of tokens: {type(failure).__name__}: {str(failure)[:200]}"
    fused = f"; nor the fused one: {unfit}" if unfit else ""
    raise LoadError(f"The generic tier does not cover this model: {told}{fused}.", "Serve it with plain transformers.")


@torch.inference_mode()
def _described(model: Any, length: int, team: TensorParallelGroup | None, slots: int) -> GenericModel:
    config = model.config.get_text_config(decoder=True)
    states = _recurrent_layers(config, team)
    attending = None if states is None else sum(kind in ("attention", "both") for kind in kinds_of(states))
    _check_config(model, config, attending != 0)
    probing, configs, device = CallRecorder(length, model.device), configs_of(model), model.device
    tokens = torch.arange(_TOKENS, device=device) + 1
    kept = torch.tensor([_TOKENS - 1, 0], device=device)
    keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    asked = {"logits_to_keep": kept} if keeps else {}
    placed = {"position_ids": tokens[None] - 1} if takes_positions(model) else {}
    with listening(configs, probing, PROBED):
        found = own_forward(model, team)(input_ids=tokens[None], use_cache=False, return_dict=True, **placed, **asked)
    calls = probing.calls
    if states is None:
        _check_calls(calls, getattr(config, "num_hidden_layers", None), device)
    elif attending:
        _check_calls(calls, attending, device, repeats=True)
    layers = [GenericLayer(call.rule, kept, call.q.shape[1]) for call, kept in zip(calls, _kept(calls), strict=True)]
    described = GenericModel(
        family=model.config.model_type,
        module=model,
        configs=configs,
        places={id(call.module): index for index, call in enumerate(calls)},
        layers=layers,
        heads=max((call.q.shape[1] for call in calls), default=1),
        kv_heads=max((call.k.shape[1] for call in calls), default=1),
        head_dim=max((call.q.shape[3] for call in calls), default=1),
        vocabulary=int(found.logits.shape[-1]),
        hidden=int(config.hidden_size),
        dtype=model.dtype,
        device=device,
        team=team,
        keeps=bool(asked) and found.logits.shape[1] == len(kept),
        cached=cache_name(model),
        placed=bool(placed),
    )
    if states is not None:
        described.scans = scans_of(model)
        described.recurrent = proven(described, states, slots)
        described.scanned = scanned_numbers(described, described.recurrent)
    else:
        described.forward(tokens, tokens - 1, kept, lambda index, q, k, v: torch.zeros_like(q).flatten(1))
    return described


def _kept(calls: Sequence[_Call]) -> list[Kept]:
    """Keys and values that each layer keeps: none where it is given those of an earlier one."""
    kept = list[Kept]()
    for number, call in enumerate(calls):
        source = next((earlier for earlier in range(number) if call.reads(calls[earlier])), -1)
        kept.append(Kept(call.rule.window, call.k.shape[1], call.k.shape[3], source))
    return kept


def _check_config(model: Any, text: Any, attends: bool) -> None:
    if model.config.is_encoder_decoder:
        raise Unlike("it is an encoder-decoder")
    if attends and not takes_positions(model):
        raise Unlike("its forward takes no positions")
    # Some modules follow it where there is no mask; of "vision" only the places of images see each other.
    if getattr(text, "use_bidirectional_attention", False) not in (None, False, "vision"):
        raise Unlike("its attention is in both directions")
    rope = changing_rotary(text)
    if rope:
        raise Unlike(f"{rope} rotary positions change with the length")


def _recurrent_layers(text: Any, team: TensorParallelGroup | None) -> list[Any] | None:
    """Layers of a model's own cache if some keep recurrent states, None if they keep keys and values, or nothing.

    Raises Unlike for a model whose cache keeps anything else.
    """
    try:
        layers = DynamicCache(config=text).layers
    except Exception as failure:
        raise Unlike(f"its cache is one of its own: {type(failure).__name__}") from failure
    strange = sorted({type(layer).__name__ for layer in layers} - set(KINDS))
    if strange:
        raise Unlike(f"layers keep more than their own keys and values: {', '.join(strange)}")
    if not set(kinds_of(layers)) & {"recurrent", "both"}:
        return None
    if team is not None:
        raise Unlike("its layers keep recurrent states, which no slices over several GPUs have")
    return list(layers)


def _check_calls(calls: Sequence[_Call], layers: int | None, device: torch.device, repeats: bool = False) -> None:
    """Raise Unlike if the layers' calls are not alike; `repeats`: layers may share a module."""
    if not calls:
        raise Unlike("its attention does not go through transformers' attention interface")
    if len({id(call.module) for call in calls}) < len(calls) and not repeats:
        raise Unlike("a module attends more than once")
    if layers is not None and len(calls) != layers:
        raise Unlike(f"{len(calls)} attention calls of {layers} layers: the others keep a state of another kind")
    if device.type == "cuda":
        _check_kernels({call.q.shape[3] for call in calls})


def _check_kernels(widths: Collection[int]) -> None:
    """Raise Unlike for heads of a width that the attention kernels of a GPU do not hold."""
    for width in sorted(widths):
        if width > LONGEST_HEAD or width % 2:
            raise Unlike(f"heads of {width}: the attention kernels hold even ones up to {LONGEST_HEAD}")


class CallRecorder:
    """Listener that records the layers' calls; raises Unlike where one is not standard."""

    def __init__(self, length: int, device: torch.device) -> None:
        self.calls: list[_Call] = []
        self._length, self._device = length, device
        self._masks: list[MaskFunction] = []

    def mask(self, function: MaskFunction, queries: int, keys: int) -> Tensor:
        """Mask whose elements all are its number, so that it is known again after slices and conversions."""
        self._masks.append(function)
        return torch.full((1, 1, queries, keys), float(len(self._masks)), device=self._device)

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, said: dict[str, Any]) -> Tensor:
        """Record a call; causal attention, so that the forward goes on with sound numbers."""
        _check_shapes(q, k, v)
        strange = sorted(name for name, value in said.items() if name not in _IGNORED and value is not None)
        if strange:
            raise Unlike(f"its attention is given {', '.join(strange)}")
        if said.get("dropout"):
            raise Unlike("its attention drops weights at random")
        rule = _attention(q, k, said, self._window(module, mask, said))
        self.calls.append(_Call(module, q, k, v, rule))
        found = attention(rule, q, k, torch.nn.functional.pad(v, (0, q.shape[3] - v.shape[3])), None)
        return found[..., : v.shape[3]].transpose(1, 2).contiguous()  # some models only view it

    def _window(self, module: Any, mask: Any, said: dict[str, Any]) -> int:
        if mask is not None:
            function = self._masked(mask)
            if all(each.numel() < 2 or each.shape[-1] >= self._length for each in _looked_at(function)):
                return window_of(function, self._length, self._device)
            return _told_window(function, said, self._device)
        if not (said.get("is_causal") or (said.get("is_causal") is None and getattr(module, "is_causal", True))):
            raise Unlike("its attention is not causal")
        if said.get("sliding_window"):
            raise Unlike("its window comes without a mask")
        return 0

    def _masked(self, mask: Any) -> MaskFunction:
        number = float(mask.flatten()[0]) if isinstance(mask, Tensor) else 0.0
        if not isinstance(mask, Tensor) or not bool((mask == number).all()) or number not in self._numbers():
            raise Unlike("it makes its masks itself")
        return self._masks[int(number) - 1]

    def _numbers(self) -> range:
        return range(1, len(self._masks) + 1)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = " ".join(str(list(each.shape)) for each in (q, k, v))
    if not all(each.ndim == 4 and each.shape[0] == 1 and each.shape[2] == _TOKENS for each in (q, k, v)):
        raise Unlike(f"queries, keys and values {shapes} are not those of {_TOKENS} tokens")
    if q.shape[1] % k.shape[1] or k.shape[1] != v.shape[1] or q.shape[3] != k.shape[3] or v.shape[3] > k.shape[3]:
        raise Unlike(f"queries, keys and values {shapes} do not fit together")


def _attention(q: Tensor, k: Tensor, said: dict[str, Any], window: int) -> Attention:
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[3]
    scale, sinks = said.get("scaling"), said.get("s_aux")
    if sinks is not None and sinks.numel() != heads:
        raise Unlike(f"{sinks.numel()} attention sinks of {heads} heads")
    return Attention(
        Linear(q.new_empty((heads + 2 * kv_heads) * width, 0)),
        Linear(q.new_empty(0, heads * width)),
        float(width**-0.5 if scale is None else scale),
        window,
        cap=float(said.get("softcap") or 0),
        sinks=sinks,
    )


def _looked_at(found: Any) -> Iterator[Tensor]:
    """Tensors that a mask function has enclosed: what it knows of each token, say."""
    if isinstance(found, Tensor):
        yield found
    parts = found if isinstance(found, tuple | list) else getattr(found, "__closure__", None) or ()
    for part in parts:
        yield from _looked_at(getattr(part, "cell_contents", part))


def _told_window(function: MaskFunction, said: dict[str, Any], device: torch.device) -> int:
    """Keys that each query sees by what its layer says, 0 for all, of a mask that knows one forward's tokens alone.

    Text tokens have nothing to themselves in it, so that it is causal; raises Unlike where that is not so.
    """
    window = int(said.get("sliding_window") or 0)
    if window_of(function, _TOKENS, device) != (window if window < _TOKENS else 0):
        raise Unlike("its mask is not that of the window that its layers tell")
    return window


def window_of(function: MaskFunction, length: int, device: torch.device) -> int:
    """Keys that each query sees up to itself, 0 for all, in sequences of `length` tokens; raises Unlike for others."""
    keys = torch.arange(length, device=device)  # what the function compares with may lie there
    nothing = torch.zeros(1, dtype=torch.int64, device=device)

    def seen(query: int) -> Tensor:
        found = function(nothing, nothing, torch.tensor([query], device=device), keys)
        return found.broadcast_to((length,))

    window = int(seen(length - 1).sum())
    places = {0, 1, window - 1, window, window + 1, length // 3, length // 2, length - 1}
    for query in sorted(place for place in places if 0 <= place < length):
        if not torch.equal(seen(query), (keys <= query) & (keys > query - window)):
            raise Unlike("its mask is neither causal nor a window of fixed length")
    return 0 if window == length else window
