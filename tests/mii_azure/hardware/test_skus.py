"""Instance types: lookup, and the table against itself."""

from __future__ import annotations

import pytest

from mii_azure.errors import UnknownInstanceType
from mii_azure.hardware.skus import all_skus, find_sku


@pytest.mark.parametrize(
    "name",
    ["Standard_NC4as_T4_v3", "standard_nc4as_t4_v3", "STANDARD_NC4AS_T4_V3", "nc4as_t4_v3", " Standard_NC4as_T4_v3 "],
)
def test_any_letter_case_finds_the_canonical_name(name: str) -> None:
    sku = find_sku(name)
    assert (sku.name, sku.cores, sku.gpus, sku.gpu_memory_gb) == ("Standard_NC4as_T4_v3", 4, 1, 16)
    assert sku.gpu and sku.gpu.compute_capability == 7.5


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Standard_NC4as_T4_v4", "Standard_NC4as_T4_v3"),
        ("Standard_DS3v2", "Standard_DS3_v2"),
        ("NC24ads_A100", "Standard_NC24ads_A100_v4"),
        ("Standard_NC6", "Standard_NC4as_T4_v3, Standard_NC8as_T4_v3"),
        ("Standard_ND96isr_H200_v5", "Standard_ND96isr_H100_v5"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownInstanceType) as caught:
        find_sku(name)
    assert near in caught.value.hint


def test_a_name_like_no_other_still_gets_a_remedy() -> None:
    with pytest.raises(UnknownInstanceType) as caught:
        find_sku("")
    assert caught.value.hint


def test_a_name_with_more_digits_than_a_number_may_have_gets_a_remedy() -> None:
    with pytest.raises(UnknownInstanceType) as caught:
        find_sku(f"Standard_NC{'9' * 5000}_v4")
    assert caught.value.hint


def test_every_row_makes_sense() -> None:
    assert len(all_skus()) == 85
    for sku in all_skus().values():
        assert sku.name.startswith("Standard_") and sku.quota_family.startswith("standard")
        assert sku.cores >= 1 and sku.ram_gb > 1 and sku.disk_gb > 1
        assert (sku.gpu is None) == (sku.gpus == 0) == (sku.gpu_memory_gb == 0)
        if sku.gpu and sku.whole_gpus:
            assert sku.gpu_memory_gb >= 16 and sku.ram_gb > sku.gpu_memory_gb


def test_only_the_families_that_azure_exempts_skip_the_reserve() -> None:
    exempt = {sku.name for sku in all_skus().values() if sku.skip_20_percent}
    assert exempt == {
        "Standard_NC24ads_A100_v4",
        "Standard_NC48ads_A100_v4",
        "Standard_NC96ads_A100_v4",
        "Standard_NC40ads_H100_v5",
        "Standard_NC80adis_H100_v5",
        "Standard_ND96asr_v4",
        "Standard_ND96amsr_A100_v4",
        "Standard_ND96is_H100_v5",
        "Standard_ND96isr_H100_v5",
        "Standard_ND40rs_v2",
    }


def test_the_ray_host_knows_instance_types_with_gpus_by_their_names() -> None:
    from local_runner.replicas.ray.cluster import _GPU_SERIES

    assert all(name.startswith(_GPU_SERIES) == (sku.gpu is not None) for name, sku in all_skus().items())


@pytest.mark.parametrize("name", ["Standard_NC6", "Standard_NC12s", "Standard_NC24r"])
def test_a_retired_size_is_answered_with_sizes_that_exist(name: str) -> None:
    with pytest.raises(UnknownInstanceType) as caught:
        find_sku(name)
    near = caught.value.hint.removeprefix("Nearest: ").partition(". ")[0].split(", ")
    assert near
    assert not any(all_skus()[each].retired for each in near)


def test_series_that_azure_has_announced_to_retire() -> None:
    retiring = {sku.quota_family: sku.retires for sku in all_skus().values() if sku.retires}
    assert retiring == {
        "standardDSv2Family": "2028-05-01",
        "standardESv3Family": "2029-11-15",
        "standardFSv2Family": "2028-11-15",
        "standardLSv2Family": "2028-11-15",
    }
    assert not any(sku.retired and sku.retires for sku in all_skus().values())
