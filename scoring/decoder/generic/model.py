"""A model of transformers as the generic tier runs it: its own modules, and what its attention calls are like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoring.decoder.generic.compiled import Forward, in_place_of
from scoring.decoder.generic.interface import listening
from scoring.decoder.generic.recurrent import SlotCache, SlotStates, in_chunks
from scoring.decoder.head_shapes import Heads
from scoring.decoder.layer_groups import Kept
from scoring.decoder.model import Attention
from scoring.distributed.tp_group import TensorParallelGroup

#: (layer, q [T, heads, D], k and v [T, kv_heads, D]) -> [T, heads * D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class GenericLayer:
    """A layer, of which only the attention is ours; its products have no inputs, only as many outputs as it has."""

    attention: Attention
    kept: Kept  # narrower values are padded to the width of keys
    heads: int  # of queries
    parallel: bool = False


@dataclass
class GenericModel:
    """A model and its attention calls; the other fields are those of a `DecoderModel` that cache and attention read.

    `heads`, `kv_heads` and `head_dim` are the largest of any layer. With `recurrent` states its forwards are
    `forward_batch`'s.
    """

    family: str
    module: Any
    configs: list[Any]  # in which its modules look up their attention
    places: dict[int, int]  # index of a layer by id() of the module that attends
    layers: list[GenericLayer]
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    hidden: int
    dtype: torch.dtype
    device: torch.device
    keeps: bool  # its forward computes logits of the rows asked for only
    alibi: None = None
    team: TensorParallelGroup | None = None
    widths: tuple[int, int] = (0, 0)  # of an MLP's products, which are the module's
    mixtures: tuple[()] = ()  # its experts are the module's too
    steady: int = 0  # its modules turn all rows of a forward alike: longer sequences are not for it
    compiled: dict[nn.Module, Forward] = field(default_factory=dict)  # layers that run by another forward
    recurrent: SlotStates | None = None  # of layers that keep more than keys and values
    cached: str = "past_key_values"  # its forward's name for a cache
    placed: bool = True  # its forward takes positions
    scans: Sequence[nn.Module] = ()  # modules that compute a prompt in chunks
    scanned: int = 0  # numbers that a token of a prompt takes in them at most, as measured on a GPU

    @property
    def kept(self) -> list[Kept]:
        """Keys and values that each layer keeps of a sequence."""
        return [layer.kept for layer in self.layers] or [Kept(0)]  # without attention, tokens take their places alone

    def heads_of(self, index: int) -> Heads:
        """Heads of a layer, which may differ from another's."""
        layer = self.layers[index]
        return Heads(layer.heads, *layer.kept.shape)

    @property
    def scratch_width(self) -> int:
        """Numbers that a row of a step may keep beside its hidden states and heads: a generous bound."""
        config = self.module.config.get_text_config(decoder=True)
        chosen = getattr(config, "num_experts_per_tok", None) or 1
        table = self.module.get_input_embeddings().weight
        sizes = [each.shape[-2:] for each in self.module.parameters() if each.ndim > 1 and len(each) != len(table)]
        logits = 0 if self.keeps else 4 * self.vocabulary
        return max(self.scanned, int(4 * chosen * max(max(shape) for shape in sizes) + logits))

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot beside keys and values: its recurrent states."""
        return 0 if self.recurrent is None else self.recurrent.slot_bytes

    @torch.inference_mode()
    def forward(self, tokens: Tensor, positions: Tensor, rows: Tensor, attend: Attend) -> Tensor:
        """Logits [rows, vocabulary] after those rows of tokens [T] at positions [T]; all of them int64."""
        kept = {"logits_to_keep": rows} if self.keeps else {}
        logits = self._forward(attend, input_ids=tokens[None], position_ids=positions[None], use_cache=False, **kept)[0]
        return logits if self.keeps else logits[rows]

    @torch.inference_mode()
    def forward_batch(self, tokens: Tensor, positions: Tensor, cache: SlotCache, attend: Attend) -> Tensor:
        """Logits [B, vocabulary] after the last of tokens [B, T], a sequence a row, whose states `cache` holds.

        Heads are handed on sequence after sequence, as rows [B * T].
        """
        told = {"position_ids": positions} if self.placed else {}
        kept = {"logits_to_keep": 1} if self.keeps else {}
        with in_chunks(self.scans, tokens.shape[1]):
            found = self._forward(attend, input_ids=tokens, use_cache=True, **{self.cached: cache}, **told, **kept)
        return found[:, -1]

    @torch.inference_mode()
    def forward_slots(self, slots: Tensor, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Logits [B, vocabulary] after one more token of each of slots [B] int64, whose states go on.

        On a GPU nothing waits for the host, unless a module of the model does.
        """
        assert self.recurrent is not None
        cache = self.recurrent.cache(slots)
        logits = self.forward_batch(tokens[:, None], positions[:, None], cache, attend)
        self.recurrent.keep(slots, cache)
        return logits

    def _forward(self, attend: Attend, **asked: Any) -> Tensor:
        with listening(self.configs, _Routed(self, attend)), in_place_of(self.compiled):
            logits: Tensor = own_forward(self.module, self.team)(return_dict=True, **asked).logits
        return logits

    def step_bytes(self) -> int:
        """Bytes of weights that a decode step of one row must read: no embedding that is no head, no idle experts."""
        head = self.module.get_output_embeddings()
        idle = {id(each.weight) for each in self.module.modules() if isinstance(each, nn.Embedding)}
        idle -= {id(head.weight)} if head is not None else set()
        named = self.module.named_parameters()
        return int(sum(_read(name, each, self.module.config) for name, each in named if id(each) not in idle))

    def kv_bytes_per_token(self) -> int:
        """Bytes that one live token takes in the cache."""
        return 2 * sum(own.heads * own.width for own in self.kept if own.source < 0) * self.dtype.itemsize


def _read(name: str, weight: Tensor, config: Any) -> float:
    """Bytes of a parameter that a step of one row reads; experts are stacked, and it reads those that it chooses."""
    chosen = getattr(config, "num_experts_per_tok", None) if ".experts." in name else None
    return weight.nbytes * chosen / len(weight) if chosen else weight.nbytes


def own_forward(module: Any, team: TensorParallelGroup | None) -> Forward:
    """Forward of a model in this process alone: on rank 0 of a sliced one `forward` is a call to all ranks."""
    called: Forward = module if team is None else partial(type(module).forward, module)
    return called


class _Routed:
    """Attention calls of a forward, handed on as a layer's number and rows of heads."""

    def __init__(self, model: GenericModel, attend: Attend) -> None:
        self._model, self._attend = model, attend
        self._called = 0

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, said: dict[str, Any]) -> Tensor:
        model = self._model
        if mask is not None:  # none was asked for: it is of the model's own making, and means more than causal
            raise ValueError("a layer masks its attention by itself")
        index = model.places[id(module)] if model.recurrent is None else self._called  # layers may share a module
        self._called += 1
        rows = [_rows(each, q.shape[-1]).to(model.dtype) for each in (q, k, v)]
        found = self._attend(index, *rows).view(len(q), q.shape[2], q.shape[1], q.shape[3])
        return found[..., : v.shape[-1]].contiguous().to(v.dtype)


def _rows(heads: Tensor, width: int) -> Tensor:
    """Heads [B, H, T, D] as rows [B * T, H, width], padded with zeros."""
    rows = heads[0].transpose(0, 1) if len(heads) == 1 else heads.transpose(1, 2).flatten(0, 1)
    return rows if rows.shape[-1] == width else torch.nn.functional.pad(rows, (0, width - rows.shape[-1]))
