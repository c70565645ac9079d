"""The tree of cached prefixes: the longest one is found, however many begin alike, without a look at each."""

import random
from collections.abc import Sequence

import pytest

from scoring.decoder import prefix_cache
from scoring.decoder.block_pool import BLOCK, BlockPool
from scoring.decoder.prefix_cache import MIN_PREFIX_TOKENS, PrefixCache, common_prefix

HEAD = list(range(40))  # as of a system prompt, shorter than a block


def test_the_longest_prefix_is_found_as_by_comparing_with_all() -> None:
    source = random.Random(0)
    cache, held = PrefixCache(BlockPool(400)), dict[int, list[int]]()
    for block in range(400):
        tokens = [source.randrange(2) for _ in range(source.randint(MIN_PREFIX_TOKENS, BLOCK))]
        if cache.insert(None, "", tokens, [block]) is not None:
            held[block] = tokens
        if block % 3 == 2:  # some are forgotten
            gone = source.choice(list(held))
            cache.remove(gone)
            del held[gone]
        asked = [source.randrange(2) for _ in range(source.randint(1, BLOCK))]
        best = max(common_prefix(tokens, asked[:-1]) for tokens in held.values())
        assert cache.match(asked, "").tokens == (best if best >= MIN_PREFIX_TOKENS else 0)


def test_a_prompt_is_compared_with_few_of_those_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = random.Random(0), PrefixCache(BlockPool(1000))
    prompts = [[*HEAD, *(source.randrange(30_000) for _ in range(BLOCK - len(HEAD)))] for _ in range(1000)]
    for block, prompt in enumerate(prompts):
        cache.insert(None, "", prompt, [block])
    compared: list[Sequence[int]] = []

    def counted(a: Sequence[int], b: Sequence[int]) -> int:
        compared.append(a)
        return common_prefix(a, b)

    monkeypatch.setattr(prefix_cache, "common_prefix", counted)
    assert cache.match([*prompts[500][:50], 30_001, 30_002], "").tokens == 50
    assert len(compared) <= 2


def test_salts_are_forgotten_with_their_last_prefix() -> None:
    """A caller may send another salt with each request."""
    cache = PrefixCache(BlockPool(4))
    for number in range(100):
        node = cache.insert(None, f"salt {number}", HEAD, [number % 4])
        assert node is not None
    assert len(cache._roots) == 4
    assert [cache.match([*HEAD, 1], f"salt {number}").tokens for number in (95, 96, 99)] == [0, len(HEAD), len(HEAD)]
