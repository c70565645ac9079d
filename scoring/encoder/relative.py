"""Tables of what distances add to attention's scores in DeBERTa-v2 and MPNet, computed once from their weights."""

from typing import Any

import torch
from torch import Tensor, nn

from scoring.encoder.positions import Distances, Relative
from scoring.passes.base import PassRefused

_MPNET_FARTHEST = 128  # distances from here on are one


def disentangled(base: Any) -> list[Relative]:
    """Tables of each DeBERTa-v2 layer: its embeddings of distances through its own projections.

    Raises PassRefused for a variant whose attention differs.
    """
    config, encoder = base.config, base.encoder
    if not getattr(config, "relative_attention", False):
        raise PassRefused("DeBERTa without relative attention is not covered")
    if encoder.conv is not None:
        raise PassRefused("a convolution beside the first layer is not covered")
    if getattr(base, "z_steps", 0) > 1:
        raise PassRefused("layers that run twice are not covered")
    with torch.no_grad():
        embedded = encoder.get_rel_embedding()
        distances = _bucketed(encoder.layer[0].attention.self, len(embedded), embedded.device)
        return [_tables(module.attention.self, embedded, distances) for module in encoder.layer]


def _tables(attention: Any, embedded: Tensor, distances: Distances) -> Relative:
    kinds, shared = attention.pos_att_type, attention.share_att_key
    keys = attention.key_proj if shared else getattr(attention, "pos_key_proj", None)
    queries = attention.query_proj if shared else getattr(attention, "pos_query_proj", None)

    def table(named: str, project: nn.Linear | None) -> Tensor | None:
        return None if named not in kinds or project is None else project(embedded).detach().contiguous()

    return Relative(distances, table("c2p", keys), table("p2c", queries))


def _bucketed(attention: Any, columns: int, device: torch.device) -> Distances:
    """Columns of DeBERTa's distances: exact ones near by, by logarithm farther off."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    span, most = attention.pos_ebd_size, attention.max_relative_positions
    apart = torch.arange(-most - 1, most + 2)
    if attention.position_buckets > 0:
        apart = make_log_bucket_position(apart, attention.position_buckets, most).long()
    found = (apart + span).clamp(0, min(2 * span, columns) - 1)
    return Distances(tuple(found.tolist()), found.int().to(device))


def distance_bias(base: Any) -> Relative:
    """Bias of MPNet's distances, one number for each head."""
    encoder = base.encoder
    apart = torch.arange(-_MPNET_FARTHEST, _MPNET_FARTHEST + 1)
    with torch.no_grad():
        buckets = encoder.relative_position_bucket(-apart)  # it counts from the query to the key
        bias = encoder.relative_attention_bias.weight.detach()[buckets.to(base.device)].float().t().contiguous()
    columns = torch.arange(len(apart))
    return Relative(Distances(tuple(columns.tolist()), columns.int().to(base.device)), bias=bias)
