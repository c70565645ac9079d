"""Inputs of an encoder's OpenVINO graph for a batch: where its tokens lie, packed and padded, and their positions.

Imports no OpenVINO.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.encoder.positions import Distances

Array = NDArray[Any]
NEVER = -1e9  # added to the scores of what is not seen; finite, since a row may see nothing else


def places(tokens: Array, live: int, shape: tuple[int, int], heads: int) -> dict[str, Array]:
    """Index inputs of `EncoderGraph`; copies that round tokens up, behind the live, attend as the first.

    Attention ends with the last column that has a token: a half of a batch is often shorter than the batch.
    """
    rows, columns = np.divmod(tokens, shape[1])
    batch, length = shape[0], int(columns.max()) + 1
    at = (rows * length + columns)[:live]
    numbers = np.zeros(batch * length, np.int32)
    numbers[at] = np.arange(live, dtype=np.int32)
    mask = np.full(batch * length, NEVER, np.float32)
    mask[at] = 0.0
    each = np.arange(heads, dtype=np.int32)
    return {
        "places": numbers.reshape(batch, 1, length) * np.int32(3 * heads) + each[:, None],
        "tokens": ((rows[:, None] * heads + each) * length + columns[:, None]).astype(np.int32),
        "mask": mask.reshape(batch, 1, 1, length),
    }


def absolute(ids: Array, pad: int) -> Array:
    """Position of each place of ids [B, S], flat: counted from 0, or where `pad` takes none, from behind it."""
    if pad < 0:
        return np.broadcast_to(np.arange(ids.shape[1]), ids.shape).ravel()
    counted = ids != pad
    return np.asarray((counted.cumsum(1) * counted + pad).ravel())


def read_by_attention(names: Collection[str], distances: Distances | None, length: int) -> dict[str, Array]:
    """Inputs of `PositionNodes` for rows of this length."""
    places = np.arange(length, dtype=np.int32)
    made = {"columns": places}
    if distances is not None:
        first, count = distances.window(length)
        apart = (places[:, None] - places[None]).clip(-distances.reach, distances.reach)
        made["apart"] = np.array(distances.listed, np.int32)[apart + distances.reach]
        made["window"] = np.arange(first, first + count, dtype=np.int32)
        near = made["apart"] - np.int32(first)
        made["by_query"] = (places[:, None] * np.int32(count) + near).ravel()
        made["by_key"] = (places[None] * np.int32(count) + near).ravel()
    return {name: made[name] for name in names}
