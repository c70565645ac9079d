"""The model to which a decoder of transformers is converted: layers as plain data, which both back ends execute.

Tensors are those of transformers' model, or views of a packed tensor that its modules then view too, so that both
share their memory. N is a product's outputs, K its inputs, E the hidden size, D a head's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from scoring.decoder.head_shapes import Heads
from scoring.decoder.layer_groups import Kept
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.lora.bank import GroupedLowRank
from scoring.quantization.int8 import quantize_per_row

NormKind = Literal["rms", "layer"]
Activation = Literal["relu", "silu", "gelu", "gelu_tanh"]


@dataclass
class Linear:
    """A product: weight [N, K] row-major, bias [N].

    An int8 weight has scale [N] (float32), one number per row, and `wide`, the 16-bit weight that prefill and larger
    batches read, which are not bound by the bytes of the weights. An int4 weight is words [N, K / 8] as `kernels` read
    them, with scale [N, G], one number per group of inputs, and `zero` [N, G] unless it is 8 throughout.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    wide: Tensor | None = None
    zero: Tensor | None = None
    adapters: GroupedLowRank | None = None  # what rows' adapters add to the outputs

    @property
    def group(self) -> int:
        """Inputs that share a scale of an int4 weight; 0 for any other."""
        if self.scale is None or self.weight.dtype != torch.int32:
            return 0
        return int(self.full.shape[1] // self.scale.shape[1])

    @property
    def full(self) -> Tensor:
        """The weight [N, K] in the model's dtype."""
        return self.weight if self.wide is None else self.wide


@dataclass
class Norm:
    """RMSNorm or LayerNorm over E: gain and shift in float32; RMSNorm has no shift."""

    kind: NormKind
    gain: Tensor
    shift: Tensor | None
    eps: float


@dataclass
class Rotary:
    """Rotation tables [positions, D/2] in float32; pairs past `half` are not rotated (cosine 1, sine 0).

    A pair is (p, p + half), or (2p, 2p + 1) when interleaved. Of a model with two tables (longrope), that of long
    sequences begins at row `long`.
    """

    cos: Tensor
    sin: Tensor
    half: int
    interleaved: bool
    long: int = 0


@dataclass
class Attention:
    """Fused QKV and output products; `per_head`: rows are ordered by head (q, k, v of head 0, then of head 1).

    `q_norm` and `k_norm`, both or neither, come before the rotation; such rows are never `per_head`. They are over D,
    each head by itself, or if `jointly` over all heads of queries, and of keys, together.
    """

    qkv: Linear
    out: Linear
    scale: float
    window: int = 0  # keys that a query sees, itself included; 0 is all
    per_head: bool = False
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    jointly: bool = False
    rotary: Rotary | None = None
    cap: float = 0.0  # scores become cap * tanh(score / cap); 0 is none
    sinks: Tensor | None = None  # [heads], of each head the score of a key that has no value

    @property
    def by_head(self) -> bool:
        """True if each head of queries and keys is normalised by itself."""
        return self.q_norm is not None and not self.jointly


@dataclass
class Mlp:
    """Products up and down; if gated, the gate's rows come first, then up's: act(gate) * up."""

    up: Linear
    down: Linear
    activation: Activation
    gated: bool = False


@dataclass
class Mixture:
    """A mixture of gated MLPs: a row's outputs are those of the experts chosen for it, weighted and added.

    The router [X, E] gives each row a score by expert, and their softmax the weights: of the `chosen` highest, which
    are `renormalised` to a sum of one or not. Weights: up [X, 2 I, E], the gate's rows first, or each before its
    other's if `interleaved`, and down [X, E, I]; biases [X, 2 I] and [X, E], both or none. With a `limit`, both halves
    are clamped to it (the gate from above only): gate * sigmoid(alpha * gate) * (other + 1).
    """

    router: Linear
    up: Tensor
    down: Tensor
    activation: Activation
    chosen: int
    renormalised: bool
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    interleaved: bool = False
    alpha: float = 0.0
    limit: float = 0.0

    @property
    def inner(self) -> int:
        """Width of an expert."""
        return int(self.down.shape[2])

    @property
    def row_bytes(self) -> int:
        """Bytes of the weights that a row reads, the router's included."""
        each = self.up[0].numel() + self.down[0].numel()
        return int(self.router.weight.nbytes + self.chosen * each * self.up.element_size())


@dataclass
class DecoderLayer:
    """One block; `parallel` computes attention and MLP from the same input and adds both to the residual stream.

    `norm1` and `norm2` normalise what attention and MLP read, unless it is the residual stream as it stands. `post1`
    and `post2` normalise their outputs before they are added; a parallel block has neither, nor experts.
    """

    norm1: Norm | None
    attention: Attention
    norm2: Norm | None
    mlp: Mlp | Mixture
    parallel: bool = False
    post1: Norm | None = None
    post2: Norm | None = None


class Attending(Protocol):
    """A layer that attends over the cache."""

    @property
    def attention(self) -> Attention: ...


class CachedModel(Protocol):
    """Attributes of a model that cache and attention read, whichever tier executes it."""

    @property
    def layers(self) -> Sequence[Attending]: ...
    @property
    def hidden(self) -> int: ...
    @property
    def scratch_width(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def alibi(self) -> Tensor | None: ...
    @property
    def steady(self) -> int: ...
    @property
    def team(self) -> TensorParallelGroup | None: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def kept(self) -> list[Kept]: ...
    def heads_of(self, index: int) -> Heads: ...


def shapes_of(model: CachedModel) -> list[Heads]:
    """Shapes of heads in a model, each once, in the order of its layers; without attention that of its sizes."""
    found = dict.fromkeys(model.heads_of(index) for index in range(len(model.layers)))
    return list(found) or [Heads(model.heads, model.kv_heads, model.head_dim)]


@dataclass
class DecoderModel:
    """A whole decoder, or a rank's slice: its heads and inputs of `out` and `down`, whose partial sums have no bias.

    Embedding, norms and head are whole on every rank.
    """

    family: str
    embedding: Tensor  # [vocabulary, E]
    layers: list[DecoderLayer]
    norm: Norm | None
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    embedding_scale: float = 1.0
    embedding_norm: Norm | None = None
    positions: Tensor | None = None  # learned, [positions, E]
    position_offset: int = 0
    residual_scale: float = 1.0  # factor on the outputs of attention and MLP
    logits_scale: float = 1.0
    logits_cap: float = 0.0  # logits become cap * tanh(logit / cap), after the scale; 0 is none
    alibi: Tensor | None = None  # slopes [heads], float32
    max_positions: int = 0  # 0: no bound
    steady: int = 0  # tokens above which a sequence uses the rotary tables' second part; 0: there is none
    team: TensorParallelGroup | None = None  # the ranks that hold the other parts

    @property
    def kept(self) -> list[Kept]:
        """Keys and values that each layer keeps of a sequence."""
        return [Kept(layer.attention.window, self.kv_heads, self.head_dim) for layer in self.layers]

    def heads_of(self, index: int) -> Heads:
        """Heads of a layer: alike in all."""
        return Heads(self.heads, self.kv_heads, self.head_dim)

    @property
    def hidden(self) -> int:
        return int(self.embedding.shape[1])

    @property
    def vocabulary(self) -> int:
        return int(self.head.full.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def widths(self) -> tuple[int, int]:
        """Largest outputs of an MLP's up product, and inputs of its down product, of all chosen experts together."""
        plain = [layer.mlp for layer in self.layers if isinstance(layer.mlp, Mlp)]
        inner = [mlp.down.full.shape[1] for mlp in plain] + [each.chosen * each.inner for each in self.mixtures]
        return max((mlp.up.full.shape[0] for mlp in plain), default=0), max(inner)

    @property
    def mixtures(self) -> list[Mixture]:
        """Experts of the layers that have any."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, Mixture)]

    @property
    def most_chosen(self) -> int:
        """Most experts of a row in a layer."""
        return max((each.chosen for each in self.mixtures), default=0)

    @property
    def scratch_width(self) -> int:
        """Numbers that a row of a step keeps beside its hidden states and heads."""
        scores = 4 * max((len(each.up) for each in self.mixtures), default=0)  # of routers, in float32 too
        return sum(self.widths) + self.most_chosen * self.hidden + scores

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot beside keys and values: none."""
        return 0

    def products(self) -> list[Linear]:
        """Products of a step, in order, but for those of experts and their routers."""
        found: list[Linear] = []
        for layer in self.layers:
            found += [layer.attention.qkv, layer.attention.out]
            found += [layer.mlp.up, layer.mlp.down] if isinstance(layer.mlp, Mlp) else []
        return [*found, self.head]

    def finish(self, logits: Tensor) -> Tensor:
        """Scale and cap logits, in place."""
        if self.logits_scale != 1.0:
            logits.mul_(self.logits_scale)
        if self.logits_cap:
            logits.div_(self.logits_cap).tanh_().mul_(self.logits_cap)
        return logits

    def step_bytes(self) -> int:
        """Bytes of weights that a decode step of one row must read."""
        plain = sum(product.weight.numel() * product.weight.element_size() for product in self.products())
        return plain + sum(each.row_bytes for each in self.mixtures)

    def kv_bytes_per_token(self) -> int:
        """Bytes that one live token takes in the cache."""
        size = torch.empty((), dtype=self.dtype).element_size()
        return 2 * len(self.layers) * self.kv_heads * self.head_dim * size


def quantize_weights(model: DecoderModel, missing: bool = False) -> None:
    """Give every product, or those `missing` a narrow one, an int8 weight beside its wide one: one scale per row."""
    for product in model.products():
        if missing and product.scale is not None:
            continue
        wide = product.full
        blocks = [
            quantize_per_row(block) for block in torch.split(wide, 8192)
        ]  # float32 copies of a few rows at a time
        product.weight = torch.cat([values for values, _ in blocks])
        product.scale = torch.cat([scale[:, 0] for _, scale in blocks])
        product.wide = wide


def dequantize_weights(model: DecoderModel) -> None:
    """Drop the int8 or int4 weights."""
    for product in model.products():
        product.weight, product.scale, product.zero, product.wide = product.full, None, None, None
