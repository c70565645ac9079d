"""One of two ranks that share one GPU, each in a process: the static decoder over its slice.

Sums go through inboxes that both can reach, by the kernel that two GPUs have; the GPU takes turns between the
processes.
"""

from pathlib import Path
from typing import Any

import torch

from scoring.decoder import decoder as decoder_decoder
from scoring.decoder.adapters.builders import build
from scoring.decoder.model import DecoderModel
from scoring.distributed.all_reduce import CAPACITY, AllReduce
from scoring.distributed.tp_group import TensorParallelGroup
from tests.scoring.decoder.test_adapters import PROMPTS, greedy, prompt, tiny
from tests.scoring.decoder.test_decoder_gpu import run
from tests.scoring.tensor_parallel.slices import cut

DEGREE = 2


class Sharing(TensorParallelGroup):
    """A rank whose inbox the other has by way of the driver."""

    def __init__(self, rank: int, send: Any, take: Any) -> None:
        device = torch.device("cuda", 0)
        super().__init__(rank, 1, device, 60.0)
        self.degree = DEGREE
        own = torch.zeros(2, DEGREE, CAPACITY, dtype=torch.int64, device=device)
        torch.cuda.synchronize()
        send.put(own)
        other = take.get(timeout=60)
        addresses = [own.data_ptr(), other.data_ptr()]
        self._exchange = AllReduce(rank, addresses if rank == 0 else addresses[::-1], own, other)

    def least(self, number: int) -> int:
        """Return this rank's: both caches hold all that three slots can."""
        return number


def work(rank: int, family: str, folder: str, send: Any, take: Any, told: Any, met: Any) -> None:
    """Put the tokens of one, two and three prompts at a time, then wait until both have."""
    team = Sharing(rank, send, take)
    model = tiny(family, Path(folder) / str(rank))
    held, prompts = greedy(model), [prompt(model, length) for length in PROMPTS]

    def part(model: object, positions: int, team: TensorParallelGroup) -> DecoderModel:
        return cut(build(model, positions), team)

    decoder_decoder.build = part
    decoder = decoder_decoder.Decoder(model.cuda(), 3, 128, team)
    told.put((rank, [run(decoder, prompts[:count], held) for count in (1, 2, 3)]))
    met.wait(60)  # an inbox that is gone cannot be written to
