"""Slices of a decoder without processes: a model that is cut by hand, and ranks that are threads."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.model import DecoderLayer, DecoderModel, Linear, Mixture, Mlp, Norm
from scoring.distributed.tp_group import TensorParallelGroup


def cut(model: DecoderModel, team: TensorParallelGroup) -> DecoderModel:
    """One rank's part of a model: its heads, its rows of `up`, its columns of `out` and `down`."""
    layers = [_cut_layer(model, layer, team) for layer in model.layers]
    heads, kv_heads = model.heads // team.degree, model.kv_heads // team.degree
    return replace(model, layers=layers, heads=heads, kv_heads=kv_heads, team=team)


def _cut_layer(model: DecoderModel, layer: DecoderLayer, team: TensorParallelGroup) -> DecoderLayer:
    attention, d = layer.attention, model.head_dim
    whole = [3 * model.heads * d] if attention.per_head else [model.heads * d, model.kv_heads * d, model.kv_heads * d]
    q_norm, k_norm = attention.q_norm, attention.k_norm
    if attention.jointly:
        q_norm, k_norm = _own(q_norm, team), _own(k_norm, team)
    return replace(
        layer,
        attention=replace(
            attention,
            qkv=_rows(attention.qkv, whole, team),
            out=_columns(attention.out, team),
            q_norm=q_norm,
            k_norm=k_norm,
        ),
        mlp=_cut_mlp(layer.mlp, team),
    )


def _cut_mlp(mlp: Mlp | Mixture, team: TensorParallelGroup) -> Mlp | Mixture:
    if isinstance(mlp, Mixture):
        halves = [half.chunk(team.degree, 1)[team.rank] for half in mlp.up.chunk(2, 1)]
        return replace(mlp, up=torch.cat(halves, 1), down=mlp.down.chunk(team.degree, 2)[team.rank].contiguous())
    inner = mlp.down.weight.shape[1]
    up = _rows(mlp.up, [inner, inner] if mlp.gated else [inner], team)
    return replace(mlp, up=up, down=_columns(mlp.down, team))


def _own(norm: Norm | None, team: TensorParallelGroup) -> Norm:
    """This rank's gains of a norm over all heads."""
    assert norm is not None
    return replace(norm, gain=norm.gain.chunk(team.degree)[team.rank])


def _rows(linear: Linear, blocks: list[int], team: TensorParallelGroup) -> Linear:
    """This rank's share of the rows of each block."""
    kept = [torch.split(linear.weight, blocks), None if linear.bias is None else torch.split(linear.bias, blocks)]
    weight, bias = (
        None if parts is None else torch.cat([part.chunk(team.degree)[team.rank] for part in parts]) for parts in kept
    )
    assert weight is not None
    return Linear(weight, bias)


def _columns(linear: Linear, team: TensorParallelGroup) -> Linear:
    return Linear(linear.weight.chunk(team.degree, 1)[team.rank].contiguous(), linear.bias)


class Threads:
    """Ranks of one process, one of which runs at a time: they change where they sum."""

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self.sums = [0] * degree  # that each has asked for
        self._turn = threading.Lock()
        self._met = threading.Barrier(degree, timeout=120)
        self._parts: dict[int, dict[int, Tensor]] = {}

    def run(self, work: Callable[[TensorParallelGroup], Any]) -> list[Any]:
        """What `work` gives on every rank; raises what the first that failed raised."""
        told: list[Any] = [None] * self.degree

        def one(rank: int) -> None:
            with self._turn, torch.inference_mode():
                try:
                    told[rank] = work(ThreadTeam(self, rank))
                except BaseException as error:
                    told[rank] = error
                    self._met.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.degree)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [each for each in told if isinstance(each, BaseException)]
        failed.sort(key=lambda each: isinstance(each, threading.BrokenBarrierError))
        if failed:
            raise failed[0]
        return told

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """Every rank's x."""
        number = self.sums[rank]
        self.sums[rank] += 1
        self._parts.setdefault(number, {})[rank] = x.clone()
        self._turn.release()
        try:
            self._met.wait()
        finally:
            self._turn.acquire()
        return [self._parts[number][each] for each in range(self.degree)]


class ThreadTeam(TensorParallelGroup):
    """A thread's place among the others."""

    def __init__(self, threads: Threads, rank: int) -> None:
        super().__init__(rank, threads.degree, torch.device("cpu"), 60.0)
        self._threads = threads

    def sum(self, x: Tensor) -> None:
        parts = self._threads.exchange(self.rank, x)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        x.copy_(total)

    def agree(self, tokens: Tensor) -> None:
        tokens.copy_(self._threads.exchange(self.rank, tokens)[0])
