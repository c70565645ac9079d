"""Logits that wait for a token to be picked of them."""

import pytest
import torch

from scoring.decoder.open_logits import OpenLogits
from scoring.decoder.sampler import add_to


def test_a_whole_tensor_is_not_copied_and_rows_of_several_are_put_together() -> None:
    held, first, second = OpenLogits(), torch.randn(2, 5), torch.randn(3, 5)
    held.keep([4, 1], first)
    assert held.of([4, 1]) is first
    held.lend([7, 5, 0], [0, 7], second)
    assert held.lent([7]) and not held.lent([7, 4])
    assert torch.equal(held.of([1, 7, 0]), torch.stack([first[1], second[0], second[2]]))
    assert not held.lent([7])  # somebody has them
    assert torch.equal(held.of([1, 4]), first[[1, 0]])
    assert torch.equal(held.of([4]), first[:1])
    held.drop([4, 9])
    with pytest.raises(KeyError):
        held.of([4])


def test_numbers_are_added_to_a_copy() -> None:
    logits = torch.zeros(2, 5)
    assert add_to(logits, [{}, {}]) is logits
    assert add_to(logits, [{}, {3: 2.0}])[1].tolist() == [0, 0, 0, 2, 0]
    assert not logits.any()
