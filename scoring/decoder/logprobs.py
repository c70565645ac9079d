"""Log-probabilities of generated tokens: the model's own, before temperature, penalties and limits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST = -9999.0  # stands for minus infinity, which JSON has not


class TokenLogprob(NamedTuple):
    """Logprob of one token, and the likeliest tokens in its place."""

    logprob: float
    top: list[tuple[int, float]]  # token and log-probability, likeliest first


class ScoredTokens(list[int]):
    """The tokens of one answer, with the logprob of each; `prompt` has those of the prompt's, from the second on."""

    prompt: Sequence[TokenLogprob] | None = None  # if asked for

    def __init__(self, tokens: Sequence[int], chances: Sequence[TokenLogprob]) -> None:
        super().__init__(tokens)
        self.logprobs = list(chances)


@torch.inference_mode()
def measure_logprobs(logits: Tensor, chosen: Tensor, most: int) -> Tensor:
    """Logprobs float64 [B, 1 + 2 most] of logits [B, vocabulary] and tokens [B], on the device, for `read_logprobs`."""
    every = torch.log_softmax(logits.float(), -1)
    own = every.gather(1, chosen[:, None])
    values, tokens = every.topk(min(most, every.shape[1]), -1)
    return torch.cat([part.double() for part in (own, tokens, values)], 1)


def read_logprobs(measured: Sequence[Sequence[float]], most: Sequence[int]) -> list[TokenLogprob]:
    """Logprobs in rows made by `measure_logprobs`, with the given number of likeliest tokens for each row."""
    found = []
    for row, count in zip(measured, most, strict=True):
        width = (len(row) - 1) // 2
        tokens, values = row[1 : 1 + min(count, width)], row[1 + width :]
        top = [(int(token), max(value, _LEAST)) for token, value in zip(tokens, values, strict=False)]
        found.append(TokenLogprob(max(row[0], _LEAST), top))
    return found


def copy_to_host(measured: Tensor) -> Callable[[], list[list[float]]]:
    """Copy a tensor's numbers from its device; waits for the copy, but for nothing enqueued after it."""
    if measured.device.type == "cpu":
        values: list[list[float]] = measured.tolist()
        return lambda: values
    host = torch.empty(measured.shape, dtype=measured.dtype, pin_memory=True)
    host.copy_(measured, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call,unused-ignore]
    arrived.record()

    def wait() -> list[list[float]]:
        arrived.synchronize()
        numbers: list[list[float]] = host.tolist()
        return numbers

    return wait


def indices(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Copy integers [N] to a device without waiting for its work."""
    host = torch.tensor(numbers, dtype=torch.int64)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
