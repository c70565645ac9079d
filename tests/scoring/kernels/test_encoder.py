"""The Triton kernels without a GPU: tile rules, and Triton's own interpreter where it is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest

from scoring.encoder.tiles import MEASURED, MEASURED_GATED, MEASURED_INT8, GemmTile, choose, choose_gated, choose_narrow
from tests.scoring.encoder.encoder_models import COVERED, POST_NORM

SHAPES = [(3072, 1024), (1024, 1024), (1024, 4096), (2304, 768), (768, 3072), (1152, 384), (384, 1536), (96, 32)]


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("rows", [64, 128, 192, 384, 512, 1024, 4096, 16384])
@pytest.mark.parametrize(("width", "depth"), SHAPES)
def test_tiles_divide_and_fit(rows: int, width: int, depth: int, partial: bool, hopper: bool) -> None:
    tile = choose(rows, width, depth, partial or (rows, width, depth) in MEASURED, hopper)
    assert rows % tile.bm == width % tile.bn == depth % (tile.split * tile.bk) == 0
    assert min(tile.bn, tile.bk, tile.bm) >= 16
    assert (tile.bm + tile.bn) * tile.bk * 2 * tile.stages <= (227 << 10 if hopper else 99 << 10)
    assert hopper or not tile.tma


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize("rows", [64, 128, 192, 384, 512, 1024, 4096, 16384])
@pytest.mark.parametrize(("width", "depth"), [*SHAPES, *((width, depth) for _, width, depth in MEASURED_INT8)])
def test_eight_bit_tiles_divide_and_fit(rows: int, width: int, depth: int, hopper: bool) -> None:
    tile = choose_narrow(rows, width, depth, hopper)
    assert rows % tile.bm == width % tile.bn == depth % tile.bk == 0
    assert tile.split == 1
    assert min(tile.bn, tile.bm) >= 16
    assert tile.bk >= 32
    assert (tile.bm + tile.bn) * tile.bk * tile.stages <= (227 << 10 if hopper else 99 << 10)
    assert hopper or not tile.tma


@pytest.mark.parametrize("hopper", [True, False])
@pytest.mark.parametrize(
    ("rows", "width", "depth"), [*MEASURED_GATED, (64, 2816, 1024), (192, 1280, 768), (64, 96, 32)]
)
def test_gated_tiles_divide_and_fit(rows: int, width: int, depth: int, hopper: bool) -> None:
    tile = choose_gated(rows, width, depth, hopper)
    assert rows % tile.bm == width % tile.bn == depth % tile.bk == 0
    assert tile.split == 1
    assert not tile.tma
    assert (tile.bm + 2 * tile.bn) * tile.bk * 2 * tile.stages <= (227 << 10 if hopper else 99 << 10)


@pytest.mark.parametrize(("rows", "width", "depth"), MEASURED)
def test_only_sums_are_split(rows: int, width: int, depth: int) -> None:
    hidden = min(width, depth)
    assert MEASURED[rows, width, depth].split == 1 or width == hidden


def test_plain_rule_splits_only_sums() -> None:
    assert choose(64, 1024, 4096, False, True).split == 1
    assert choose(64, 1024, 4096, True, True).split > 1
    assert choose(128, 3072, 1024, False, False) == GemmTile(64, 64, 64, stages=3)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (CPU builds of torch)")
def test_kernels_in_the_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.scoring.kernels.interpreted_encoder"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    if "only 0-dimensional arrays" in run.stderr:
        pytest.skip("this triton's interpreter cannot loop under this numpy")
    assert run.returncode == 0, run.stderr[-2000:]
    errors = dict(line.split("=") for line in run.stdout.splitlines())
    assert set(errors) == {*COVERED, *(f"{name} in int8" for name in POST_NORM)}
    for name, error in errors.items():  # a number on the edge between two integers may fall to either side
        assert 0 < float(error) < (3e-2 if name.endswith("int8") else 2e-5), errors
