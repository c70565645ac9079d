"""Sums over the ranks of a sliced decoder within a step's launches, and the norms that follow."""

from typing import Any

import triton  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from scoring.decoder.absent import affine, epsilon, given, kind
from scoring.decoder.adapter_step import AdaptedLaunches
from scoring.decoder.model import DecoderModel, Norm
from scoring.kernels import decode_elementwise


class RankSums(AdaptedLaunches):
    """Part of a `Launcher`: all-reduces, if there are ranks, and the kernel that adds to the residual stream."""

    model: DecoderModel
    _stream: Tensor
    _summed = False  # the previous kernel is NCCL's

    def _launch(self) -> dict[str, Any]:
        """Launch options of the next kernel: an early start, except after a kernel of NCCL's, which never triggers one.

        So whatever was written two launches ago is visible before a kernel waits, with or without all-reduces.
        """
        early = self.pdl and not self._summed
        self._summed = False
        return {"launch_pdl": True} if early else {}

    def _sum(self, x: Tensor) -> None:
        """All-reduce the ranks' parts, in place."""
        if (team := self.model.team) is None:
            return
        if (exchange := team.quick(x)) is not None:
            exchange.sum(x, self.pdl, self._launch())
        else:
            team.sum(x)
            self._summed = True

    def _agree(self, tokens: Tensor) -> None:
        """Take rank 0's tokens on all ranks: a last bit that differs between GPUs must not make sequences diverge."""
        if (team := self.model.team) is None:
            return
        if (exchange := team.quick(tokens)) is not None:
            exchange.agree(tokens, self.pdl, self._launch())
        else:
            team.agree(tokens)
            self._summed = True

    def add_norm(self, rows: int, y: Tensor | None, bias: Tensor | None, norm: Norm | None,
                 post: Norm | None = None, read: bool = True) -> None:  # fmt: skip
        """Compute x += y + bias if there is a y, normed by `post` first, and normed = norm(x) if it is `read` next."""
        b = self.buffers
        decode_elementwise.add_norm[(rows,)](
            self._stream, given(y, b.x), given(bias, b.x), affine(post, b.x)[0], *affine(norm, b.x), b.normed,
            self.model.hidden,
            epsilon(norm), epsilon(post), self.model.residual_scale, BE=triton.next_power_of_2(self.model.hidden),
            ADD=y is not None, BIAS=bias is not None, POST=post is not None,
            NORM=kind(norm) if read else "skip", PDL=self.pdl, num_warps=4, **self._launch(),
        )  # fmt: skip
