"""One of two ranks that share one GPU: prints the tokens of the static decoder over its slice, as JSON.

`TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES=1 python -m tests.passes.ranks_of_one_gpu RANK STORE FAMILY FOLDER`. Sums go
through memory that both ranks read, as between two GPUs. NCCL wants a GPU for each rank, so both choose tokens by
themselves here, and the tokens have to be equal for it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from scoring import decode
from scoring.decoder_families import build
from scoring.decoder_form import Form
from scoring.decoder_team import Team
from tests.passes.slices import cut
from tests.passes.test_decoder_gpu import run
from tests.passes.test_decoder_reference import PROMPTS, greedy, prompt, tiny

DEGREE = 2
UNABLE = "ranks cannot share this GPU's memory"


class Sharing(Team):
    """A rank that leaves the choice of tokens to itself."""

    def agree(self, tokens: Tensor) -> None:
        pass


def main(arguments: Sequence[str]) -> None:
    rank, store, family, folder = arguments
    torch.cuda.set_device(0)
    dist.init_process_group("gloo", store=dist.FileStore(store, DEGREE), rank=int(rank), world_size=DEGREE)
    team = Sharing(int(rank), DEGREE, torch.device("cuda", 0), 60.0)
    if not team.direct:
        sys.exit(UNABLE)
    model = tiny(family, Path(folder))
    held, prompts = greedy(model), [prompt(model, length) for length in PROMPTS]

    def part(model: object, positions: int, team: Team) -> Form:
        return cut(build(model, positions), team)

    decode.build = part
    decoder = decode.Decoder(model.cuda(), 3, 128, team)
    tokens = [run(decoder, prompts[:1], held), run(decoder, prompts[:2], held), run(decoder, prompts, held)]
    print(json.dumps(tokens))


if __name__ == "__main__":
    main(sys.argv[1:])
