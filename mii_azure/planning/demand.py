"""Demand: what a spec asks of one request's length and of requests at once, checked against the model."""

from typing import NamedTuple

from mii_azure.errors import NotAvailable, SpecError
from mii_azure.model.profile import Profile
from mii_azure.platform import limits
from mii_azure.platform.servers import Server
from mii_azure.spec import Spec
from scoring.passes.families import decoder_tier


class Demand(NamedTuple):
    """Demand on memory and on the server; None where the plan decides."""

    context: int | None = None  # tokens of one request, prompt and answer
    concurrency: int | None = None  # most sequences at once
    share: float | None = None  # of a GPU's memory
    prompt: int = limits.EXPECTED_PROMPT_TOKENS  # of an expected request
    new: int = limits.EXPECTED_NEW_TOKENS
    adapters: int = 0  # parameters of those beside the model
    narrow: bool = False  # keys and values are kept in FP8
    paged: bool = True  # False: the pass that has a paged cache is forced off
    server: Server = "azmlinfsrv"  # what hands tokens on
    eight: bool = True  # False: the passes that have a CPU multiply in eight bits are off, or have no place

    def tokens(self, context: int) -> int:
        """Tokens that an expected request holds at its end, within a context."""
        return max(1, min(self.prompt + self.new, context))


def demand_of(spec: Spec, facts: Profile, beside: int = 0) -> Demand:
    """Demand of a spec, with `beside` parameters of adapters beside the model.

    Raises NotAvailable, or SpecError where an expected request is longer than the context.
    """
    own, asked = facts.context_length, spec.context_length
    if asked and not facts.known:
        raise NotAvailable(
            f"{facts.model} is not opened, so its context is not known.",
            "Leave out context_length, or give the model's folder or hub id.",
        )
    if asked and asked > own:
        raise NotAvailable(
            f"A context of {asked:,} tokens is longer than the {own:,} that {facts.model} was made for.",
            f"Ask for {own:,} at most.",
        )
    context, expected = asked or own, spec.expected_prompt_tokens + spec.expected_new_tokens
    if facts.known and spec.expects and expected > context:
        raise SpecError(
            f"A request of {spec.expected_prompt_tokens:,} prompt tokens and {spec.expected_new_tokens:,} new ones is"
            f" longer than the context of {context:,}.",
            "Expect shorter requests, or serve a longer context.",
        )
    return Demand(
        asked,
        spec.max_concurrency,
        spec.memory_share,
        spec.expected_prompt_tokens,
        spec.expected_new_tokens,
        beside,
        spec.kv_cache_dtype == "fp8",
        "static_decode" not in spec.passes_off and _has_one_order(spec, facts),
        spec.server,
        _multiplies_eight_bits(spec, facts),
    )


def _multiplies_eight_bits(spec: Spec, facts: Profile) -> bool:
    """True unless something asked for keeps a CPU from the narrow products that it takes by itself."""
    if facts.kind == "encoder":
        return "cpu" not in spec.passes_off
    off = {"static_decode", "weight_only"} & set(spec.passes_off)
    other = spec.batch_invariant or spec.adapters or spec.kv_cache_dtype == "fp8" or spec.objective != "latency"
    return not off and not other


def _has_one_order(spec: Spec, facts: Profile) -> bool:
    """Return True unless sums of one order are asked for, and the family's tier or adapters have none."""
    return not spec.batch_invariant or (decoder_tier(facts.family).tier == "fused" and not spec.adapters)
