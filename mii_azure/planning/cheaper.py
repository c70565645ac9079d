"""CPU against GPU by cost: a million requests of full instances, and the load up to which CPUs cost less an hour.

An instance is paid for whether it is busy or not. So a GPU that costs less a million requests may cost more an hour
than the few CPUs that a small load needs.
"""

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from mii_azure.planning.expected import Basis
from mii_azure.platform.limits import MAX_INSTANCES

MILLION = 1_000_000
WITHOUT = "give --prices FILE, which `mii-azure prices` writes"


class Offer(BaseModel):
    """Instance type that serves a model at a known price."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance_type: str
    device: str  # "cpu" or "cuda"
    price_per_hour: float  # of one instance
    per_second: float  # requests that one instance answers in its busy share of a second
    basis: Basis  # of that rate

    @property
    def per_million(self) -> float:
        """Price of a million requests of an instance that is as busy as is assumed."""
        return self.price_per_hour / (self.per_second * 3600) * MILLION


class Cheaper(BaseModel):
    """The cheapest CPU and GPU for a million requests, and how far CPUs cost less an hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    currency: str | None = None
    cpu: Offer | None = None
    gpu: Offer | None = None
    cpu_up_to: float | None = None  # requests a second up to which CPUs cost less an hour; None: at any that was tried
    gpu_above: bool = False  # a GPU costs no more at every larger load
    least_cpu: str = ""  # instance type that serves the smallest load for the least price an hour
    least_gpu: str = ""
    busy: float = 1.0  # share of the time that instances are assumed to be
    uncounted: str = ""  # what the rates leave out, in words
    lacks: str = ""  # why nothing is compared; "" if something is

    def sentence(self) -> str:
        """Answer for a person."""
        if self.cpu is None or self.gpu is None:
            return f"CPU or GPU: {self.lacks}"
        told = f"{self.cpu.per_million:,.3g} {self.currency} on {_named(self.cpu)} and"
        told += f" {self.gpu.per_million:,.3g} on {_named(self.gpu)}, busy {self.busy:.0%} of the time"
        up_to = self.cpu_up_to
        if up_to is None:
            load = f"CPUs cost less at every load up to {MAX_INSTANCES} instances"
        elif not up_to:
            load = f"at every load {self.least_gpu} costs less an hour than any CPU"
        else:
            load = f"a GPU is paid for while it waits, too: up to {up_to:,.3g} requests/s CPUs cost less an hour,"
            load += f" from {self.least_cpu} on; above it "
            load += "a GPU does" if self.gpu_above else "that depends on how full the last instance is"
        rest = f"; {self.uncounted} is not counted" if self.uncounted else ""
        return f"a million requests: {told}; {load}{rest}"


def _named(offer: Offer) -> str:
    return f"{offer.instance_type} ({'CPU' if offer.device == 'cpu' else 'GPU'}, {offer.basis})"


def compared(
    offers: Sequence[Offer], currency: str | None, devices: Iterable[str], busy: float = 1.0, uncounted: str = ""
) -> Cheaper:
    """Compare the offers; `devices` are those on which the model can be served at all, whatever is priced.

    `busy` is the share of the time that the offers' rates assume, `uncounted` what they leave out.
    """
    able = set(devices)
    cpus, gpus = ([each for each in offers if each.device == device] for device in ("cpu", "cuda"))
    if currency is None:
        return Cheaper(lacks=f"not known which costs less a million requests; {WITHOUT}.")
    for device, found, word in (("cpu", cpus, "CPU"), ("cuda", gpus, "GPU")):
        if device not in able:
            return Cheaper(currency=currency, lacks=f"no {word} instance type of the data serves it.")
        if not found:
            return Cheaper(
                currency=currency,
                lacks=f"the price file has no {word} instance type that serves it; give one that has.",
            )
    up_to, gpu_above = _cheaper_up_to(cpus, gpus)
    return Cheaper(
        currency=currency,
        cpu=min(cpus, key=lambda each: each.per_million),
        gpu=min(gpus, key=lambda each: each.per_million),
        cpu_up_to=up_to,
        gpu_above=gpu_above,
        least_cpu=min(cpus, key=lambda each: each.price_per_hour).instance_type,
        least_gpu=min(gpus, key=lambda each: each.price_per_hour).instance_type,
        busy=busy,
        uncounted=uncounted,
    )


def _cheaper_up_to(cpus: Sequence[Offer], gpus: Sequence[Offer]) -> tuple[float | None, bool]:
    """Load up to which every smaller one costs less an hour on CPUs, and whether none above it does.

    The load is None if all that `MAX_INSTANCES` CPUs can serve cost less there.

    The price of a load changes only where instances of some type are full, so these loads are all that is tried.
    """
    full = sorted({count * each.per_second for each in (*cpus, *gpus) for count in range(1, MAX_INSTANCES + 1)})
    less = [_hourly(cpus, load) < _hourly(gpus, load) for load in full]
    most = MAX_INSTANCES * max(each.per_second for each in cpus)
    turn = less.index(False) if False in less else len(full)
    if turn == len(full) or full[turn] > most:
        return None, False
    return full[turn - 1] if turn else 0.0, not any(less[turn:])


def _hourly(offers: Sequence[Offer], load: float) -> float:
    """Least price an hour of enough instances of one type for a load; infinite if that is more than Azure allows."""
    counts = ((math.ceil(load / each.per_second * (1 - 1e-9)), each.price_per_hour) for each in offers)
    return min((count * price for count, price in counts if count <= MAX_INSTANCES), default=math.inf)
