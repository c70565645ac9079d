"""Prints the relative error of the Triton kernels for every covered family; run with TRITON_INTERPRET=1."""

import sys

from scoring.kernels.encoder_triton import Tile, TritonOps
from scoring.passes.checking import reference
from scoring.passes.fused_encoder import FusedEncoder
from tests.passes.encoder_models import COVERED, covered


def main() -> None:
    tiles = {(128, 64, 64): Tile(64, 32, 16, split=2), (128, 64, 128): Tile(64, 16, 32, split=4, tma=True)}
    for name in COVERED:
        model = covered(name)
        told = reference(model)
        passing = FusedEncoder(TritonOps(hopper=False, tiles=tiles))
        passing.apply(model)
        sys.stdout.write(f"{name}={passing.verify(model, told)}\n")


if __name__ == "__main__":
    main()
