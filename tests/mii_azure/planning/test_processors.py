"""Instruction sets that a plan tells of CPU sizes."""

import pytest

from mii_azure.hardware.skus import all_skus, find_sku
from mii_azure.planning import processors


@pytest.mark.parametrize(
    ("size", "value", "told"),
    [
        (
            "Standard_F8s_v2",
            "AVX2, AVX-512; on some VNNI, bfloat16, AMX",
            "8168 or Intel Xeon Platinum 8573C, and chooses",
        ),
        (
            "Standard_E4s_v3",
            "AVX2; on some AVX-512, VNNI",
            "8370C, Intel Xeon Platinum 8272CL, Intel Xeon 8171M or",
        ),
        ("Standard_D2as_v4", "AVX2", "None has AVX-512, VNNI, bfloat16 or AMX"),
        ("Standard_L8s_v3", "AVX2, AVX-512, VNNI", "on Intel Xeon Platinum 8370C. None has bfloat16 or AMX"),
    ],
)
def test_they_are_those_of_every_and_of_some_processor(size: str, value: str, told: str) -> None:
    (line,) = processors.lines(find_sku(size))
    assert (line.what, line.value) == ("instruction sets", value)
    assert told in line.reason
    assert line.forecast == ("some" in value)


def test_sizes_with_gpus_and_those_without_a_record_have_no_line() -> None:
    assert not processors.lines(find_sku("Standard_NC4as_T4_v3"))
    silent = [sku for sku in all_skus().values() if sku.gpu is None and not sku.processors]
    assert silent
    assert not any(processors.lines(each) for each in silent)


def test_a_series_that_has_every_set_is_told_of_nothing_that_it_lacks() -> None:
    sku = find_sku("Standard_L8s_v3")
    every = sku.processors[0].model_copy(update={"sets": processors.ASKED})
    (line,) = processors.lines(sku.model_copy(update={"processors": (every,)}))
    assert line.value == ", ".join(processors.ASKED)
    assert "None has" not in line.reason
