"""The tree of cached prefixes: the longest one is found, however many begin alike, without a look at each."""

import random
from collections.abc import Sequence

import pytest

from scoring.decoder import prefix_cache
from scoring.decoder.block_pool import BLOCK, BlockPool
from scoring.decoder.prefix_cache import MIN_PREFIX_TOKENS, Node, PrefixCache, common_prefix

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


def test_of_prefixes_that_go_on_alike_one_is_taken_whose_windows_have_their_keys() -> None:
    """One of them gave up its block behind the window; the other still has it."""
    whole, alike = list(range(BLOCK)), list(range(100, 140))
    cache = PrefixCache(BlockPool(8), (0, 2 * BLOCK))
    above = cache.insert(None, "", whole, [0, 1])
    cache.insert(above, "", [*alike, 1], [2, -1])
    cache.insert(above, "", [*alike[:30], 999], [4, 5])
    assert cache.match([*whole, *alike, 0], "").tokens == BLOCK + 30
    cache.insert(above, "", [*alike, 2], [6, 7])
    assert cache.match([*whole, *alike, 0], "").tokens == BLOCK + 40


def test_the_longest_prefix_within_windows_is_found_as_by_trying_all() -> None:
    source, windows = random.Random(1), (0, 20, 100)
    shorter = 0
    for _ in range(150):
        pool = BlockPool(400)
        cache = PrefixCache(pool, windows)
        for _ in range(12):
            text, node = _text(source), None
            for at in range(0, len(text), BLOCK):
                blocks = [pool.take(), *(pool.take() if source.random() < 0.6 else -1 for _ in windows[1:])]
                node = cache.insert(node, "", text[at : at + BLOCK], blocks)
        asked = _text(source)
        found = cache.match(asked, "").tokens
        assert found == _longest(cache._roots[""], [], asked, windows)
        shorter += cache.match(asked, "", whole_only=True).tokens < found
    assert shorter > 50


def _text(source: random.Random) -> list[int]:
    """Tokens that go on as counting does up to some place, and then another way."""
    alike, count = source.randrange(16, 170), source.randrange(70, 190)
    return [number if number < alike else number + 1000 * source.randint(1, 3) for number in range(count)]


def _longest(node: Node, chain: list[Node], ids: list[int], windows: Sequence[int]) -> int:
    """Length of the longest prefix below a node that can be reused: every child is compared."""
    best = 0
    for child in node.children.values():
        longer = [*chain, child]
        alike = common_prefix(child.tokens, tuple(ids[len(chain) * BLOCK : -1]))
        tokens = len(chain) * BLOCK + alike
        seen = [longer[max(0, tokens - window + 1) // BLOCK :] for window in windows[1:]]
        held = all(each.blocks[group] for group, nodes in enumerate(seen, 1) for each in nodes)
        if alike and tokens >= MIN_PREFIX_TOKENS and held:
            best = max(best, tokens)
        if alike == BLOCK:
            best = max(best, _longest(child, longer, ids, windows))
    return best
