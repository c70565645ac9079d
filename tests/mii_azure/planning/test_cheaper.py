"""CPU against GPU: the cheaper a million requests, the load at which that turns, and what is said without a price."""

import pytest

from mii_azure.hardware.skus import find_sku
from mii_azure.planning.cheaper import Offer, compared
from mii_azure.planning.expected import most_read
from mii_azure.planning.ranking import rank_profile
from mii_azure.platform.limits import MAX_INSTANCES
from mii_azure.spec import make_spec
from tests.mii_azure.planning.test_ranking import PRICES, facts, ranked

BOTH = ("cpu", "cuda")


def offer(device: str, price: float, rate: float, name: str = "") -> Offer:
    return Offer(instance_type=name or device, device=device, price_per_hour=price, per_second=rate, basis="scaled")


def test_a_million_requests_cost_the_hours_that_they_take() -> None:
    assert offer("cpu", 0.36, 100.0).per_million == pytest.approx(1.0)


def test_a_small_load_is_cheaper_on_cpus_though_a_full_gpu_is_cheaper_a_request() -> None:
    """One GPU at 1.0 an hour and 1,000 a second; CPUs at 0.3 and 20: three of them cost less, four do not."""
    made = compared([offer("cpu", 0.3, 20), offer("cuda", 1.0, 1000)], "USD", BOTH)
    assert made.cpu_up_to == pytest.approx(60)
    assert "a million requests: 4.17 USD on cpu (CPU, scaled) and 0.278 on cuda (GPU, scaled)" in made.sentence()
    assert "a GPU is paid for while it waits, too: up to 60 requests/s CPUs cost less an hour" in made.sentence()
    assert "above it a GPU does" in made.sentence()


def test_where_a_second_gpu_is_needed_cpus_may_cost_less_again() -> None:
    """Full, the GPU is cheaper a request; at 101 a second two GPUs cost 2.0 an hour, and six CPUs 1.2."""
    made = compared([offer("cpu", 0.2, 19), offer("cuda", 1.0, 100)], "USD", BOTH)
    assert made.cpu is not None and made.gpu is not None
    assert made.gpu.per_million < made.cpu.per_million
    assert made.cpu_up_to == pytest.approx(76)
    assert made.sentence().endswith("above it that depends on how full the last instance is")


def test_the_smallest_cpu_counts_even_where_another_is_cheaper_a_request() -> None:
    cheap, small = offer("cpu", 2.0, 500, "wide"), offer("cpu", 0.5, 10, "small")
    made = compared([cheap, small, offer("cuda", 1.0, 400)], "USD", BOTH)
    assert made.cpu is not None
    assert (made.cpu.instance_type, made.least_cpu) == ("wide", "small")
    assert made.cpu_up_to == pytest.approx(10)


def test_a_gpu_below_every_cpus_price_is_cheaper_at_every_load() -> None:
    made = compared([offer("cpu", 1.0, 20), offer("cuda", 0.5, 1000)], "USD", BOTH)
    assert made.cpu_up_to == 0
    assert "at every load cuda costs less an hour than any CPU" in made.sentence()


def test_a_cpu_that_is_cheaper_at_every_load_is_told_so() -> None:
    made = compared([offer("cpu", 0.1, 50), offer("cuda", 1.0, 100)], "USD", BOTH)
    assert made.cpu_up_to is None
    assert f"at every load up to {MAX_INSTANCES} instances" in made.sentence()


def test_whole_instances_are_paid_for_where_rates_are_no_round_numbers() -> None:
    """Three times a rate is served by three instances, whatever the last bit of the product says."""
    made = compared([offer("cpu", 0.3, 0.1), offer("cuda", 1.0, 1000)], "USD", BOTH)
    assert made.cpu_up_to == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("offers", "currency", "able", "said"),
    [
        ([], None, BOTH, "give --prices FILE"),
        ([offer("cpu", 1, 1)], "USD", BOTH, "the price file has no GPU instance type that serves it"),
        ([offer("cuda", 1, 1)], "USD", BOTH, "the price file has no CPU instance type that serves it"),
        ([offer("cuda", 1, 1)], "USD", ("cuda",), "no CPU instance type of the data serves it"),
    ],
)
def test_what_is_lacking_for_a_comparison_is_said(offers: list[Offer], currency: str, able: tuple, said: str) -> None:
    assert said in compared(offers, currency, able).sentence()


def test_requests_are_compared_where_tokens_are_ranked() -> None:
    made = ranked(PRICES, utilisation=0.25)
    row = next(row for row in made.rows if row.instance_type == made.cheaper.gpu.instance_type)
    assert made.unit == "tokens"
    assert made.cheaper.gpu.per_million == pytest.approx(row.cost_per_million * made.new_tokens)
    assert made.cheaper.cpu.instance_type == "Standard_F8s_v2"


def test_more_instances_asked_for_change_no_cost_of_a_request() -> None:
    alone, three = ranked(PRICES).cheaper, ranked(PRICES, instance_count=3).cheaper
    assert three.cpu_up_to == pytest.approx(alone.cpu_up_to)
    assert three.gpu.per_million == pytest.approx(alone.gpu.per_million)
    assert three.sentence() == alone.sentence()


def test_a_line_says_how_busy_instances_are_and_what_its_rates_leave_out() -> None:
    made = compared([offer("cpu", 0.3, 20), offer("cuda", 1.0, 1000)], "USD", BOTH, 0.25, "what waits")
    assert ", busy 25% of the time;" in made.sentence()
    assert made.sentence().endswith("; what waits is not counted")
    assert "beside reading its text" in ranked(PRICES, "text-classification", profile=facts("bert")).cheaper.sentence()


def test_a_small_encoder_on_a_fast_gpu_waits_for_the_cores_that_read_its_texts() -> None:
    small = facts("bert", 20_000_000, layers=2, hidden_size=128, kv_bytes_per_token=0)
    made = ranked(PRICES, "text-classification", profile=small, utilisation=1.0)
    gpu = made.cheaper.gpu
    row = next(row for row in made.rows if row.instance_type == gpu.instance_type)
    assert gpu.per_second == pytest.approx(most_read(find_sku(gpu.instance_type), made.request_tokens))
    assert gpu.per_second < row.throughput
    large = ranked(PRICES, "text-classification", profile=facts("bert"), utilisation=1.0)
    assert large.cheaper.cpu.per_second == next(
        row.throughput for row in large.rows if row.instance_type == large.cheaper.cpu.instance_type
    )


def test_what_stands_beside_a_model_is_counted_where_it_has_to_fit() -> None:
    """A draft model, or adapters, that no small GPU holds beside the model leave the large ones to be compared."""
    alone = ranked(PRICES)
    spec = make_spec(task="text-generation", model="m", name="abc")
    least = min((row for row in alone.rows if row.fits and row.device == "cuda"), key=lambda row: row.headroom or 0)
    for more in ({"draft": facts()}, {"beside": facts().parameters}):
        beside = next(
            row for row in rank_profile(spec, facts(), **more).rows if row.instance_type == least.instance_type
        )
        assert not beside.fits or beside.batch < least.batch or beside.headroom < least.headroom
