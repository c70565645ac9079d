"""Prints the relative error of the Triton kernels for every covered family, or for those that are named.

Run it with TRITON_INTERPRET=1. In eight bits they are compared with the same arithmetic in plain torch.
"""

import sys

from scoring.encoder.ops import TorchOps
from scoring.encoder.smoothquant import narrow_layers
from scoring.encoder.triton_ops import GemmTile, TritonOps
from scoring.encoder.verify import answers, probes, reference, relative_error
from scoring.passes.fused_encoder import FusedEncoder
from tests.scoring.encoder.encoder_models import COVERED, covered


def main() -> None:
    tiles = {(128, 64, 64): GemmTile(64, 32, 16, split=2), (128, 64, 128): GemmTile(64, 16, 32, split=4, tma=True)}
    for name in sys.argv[1:] or COVERED:
        model = covered(name)
        told = reference(model)
        passing = FusedEncoder(TritonOps(hopper=False, tiles=tiles))
        passing.apply(model)
        sys.stdout.write(f"{name}={passing.verify(model, told)}\n")
        stack = passing.stack
        assert stack is not None
        if not stack.layers:  # its norms stand before its products
            continue
        stack.layers = narrow_layers(stack, probes(model, seed=1))
        found = [answers(model, batch) for batch in probes(model)]
        stack.ops = TorchOps()
        wanted = [answers(model, batch) for batch in probes(model)]
        error = max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))
        sys.stdout.write(f"{name} in int8={error}\n")


if __name__ == "__main__":
    main()
