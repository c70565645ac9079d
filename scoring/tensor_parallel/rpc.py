"""Calls of a sliced model: the same call on every rank, and generation in lockstep.

Rank 0 alone knows stop texts, streams and cancelled requests: after every token it sends the others the chosen tokens
and the sequences that ended. Between two tokens of `generate` its static decoder may take steps, and the
others' take theirs then too, because each rank receives all calls in the order in which rank 0 makes them.
"""

import functools
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from scoring.tensor_parallel.workers import ShardSpec, Workers, calls

#: Arguments of `generate` that stay on rank 0.
_OWN = ("stopping_criteria", "streamer")
#: Rank 0's last token of each sequence, and True for each that ended.
Word = tuple[list[int], list[bool]]


class StopInStep(StoppingCriteria):  # type: ignore[misc]
    """Stopping criterion that gives all ranks rank 0's last tokens and ends."""

    def __init__(self, searching: bool, word: Callable[[Tensor, Any, dict[str, Any]], Word]) -> None:
        self._searching = searching  # beams are the same on all ranks, because scores are bit for bit
        self._word = word

    def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Tensor:
        tokens, done = self._word(input_ids, scores, rest)
        if not self._searching:
            input_ids[:, -1] = torch.tensor(tokens, device=input_ids.device)
        return torch.tensor(done, device=input_ids.device)


class RpcClient:
    """A method of rank 0's model that all ranks run."""

    def __init__(self, name: str, method: Callable[..., Any], ranks: Workers, inside: list[bool]) -> None:
        functools.update_wrapper(self, method)  # transformers reads the signature of forward
        self._name = name
        self._method = method
        self._ranks = ranks
        self._inside = inside  # a flag shared by the model's methods: calls within a call are not sent

    def __call__(self, *positional: Any, **arguments: Any) -> Any:
        if self._inside[0]:
            return self._method(*positional, **arguments)
        if positional:
            arguments["input_ids"] = positional[0]
        sent = {key: _to(value, "cpu") for key, value in arguments.items() if key not in _OWN}
        sent["random"] = torch.get_rng_state()
        self._ranks.send((self._name, sent))
        self._inside[0] = True
        try:
            if self._name == "generate":
                own = arguments.pop("stopping_criteria", None)
                word = functools.partial(self._tell, own or StoppingCriteriaList())
                arguments["stopping_criteria"] = StoppingCriteriaList([StopInStep(_searching(arguments), word)])
            return self._method(**arguments)
        except RuntimeError as error:
            raise self._ranks.fail(error) from error
        finally:
            self._inside[0] = False

    def _tell(self, own: StoppingCriteriaList, input_ids: Tensor, scores: Any, rest: dict[str, Any]) -> Word:
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in own:
            done |= criterion(input_ids, scores, **rest)
        word = input_ids[:, -1].tolist(), done.tolist()
        self._ranks.send(("word", {"word": word}))
        return word


class RpcServer:
    """A rank other than 0, whose slice is loaded: makes the calls that rank 0 sends."""

    def __init__(self, pipe: Connection, model: Any, plan: ShardSpec, rank: int) -> None:
        self._pipe = pipe
        self._model = model
        self._plan = plan
        self._rank = rank
        self._device = torch.device("cpu") if plan.device == "cpu" else torch.device("cuda", rank)
        self._methods: dict[str, Callable[..., Any]] = {name: getattr(model, name) for name in calls(model)}
        self._decoder: Any = None

    def run(self) -> None:
        """Serve calls until rank 0 closes the socket."""
        try:
            while True:
                self._make(*self._hear())
        except EOFError:
            return

    def _hear(self) -> tuple[str, dict[str, Any]]:
        call: tuple[str, dict[str, Any]] = pickle.loads(self._pipe.recv_bytes())  # noqa: S301
        return call

    def _make(self, name: str, arguments: dict[str, Any]) -> None:
        with torch.inference_mode():
            if name in self._methods:
                self._call(name, arguments)
            elif name == "build":
                self._pipe.send_bytes(pickle.dumps(self._build(**arguments)))
            elif name == "drop":
                self._decoder = None
            else:
                getattr(self._decoder, name)(**arguments)
                if name == "warm_up":
                    self._pipe.send_bytes(pickle.dumps("warm"))

    def _call(self, name: str, arguments: dict[str, Any]) -> None:
        torch.set_rng_state(arguments.pop("random"))
        arguments = {key: _to(value, self._device) for key, value in arguments.items()}
        if name == "generate":
            arguments["stopping_criteria"] = StoppingCriteriaList([StopInStep(_searching(arguments), self._word)])
        self._methods[name](**arguments)

    def _word(self, *_: Any) -> Word:
        """Receive rank 0's word on the last token; decoder calls that arrive before it are made first."""
        while True:
            name, arguments = self._hear()
            if name == "word":
                word: Word = arguments["word"]
                return word
            self._make(name, arguments)

    def _build(self, slots: int, max_length: int, tokens: int, share: float) -> str:
        """Build this rank's decoder; return "built", or the reason why not."""
        from scoring.decoder.decoder import Decoder
        from scoring.distributed.tp_group import TensorParallelGroup

        team = TensorParallelGroup(self._rank, self._plan.degree, self._device, self._plan.call_s)
        try:
            self._decoder = Decoder(self._model, slots, max_length, team, tokens, share)
        except (torch.OutOfMemoryError, OSError) as error:
            return f"no memory for its part: {str(error).strip().splitlines()[0][:200]}"
        return "built"


def _searching(arguments: dict[str, Any]) -> bool:
    config = arguments.get("generation_config")
    beams = arguments.get("num_beams") or getattr(config, "num_beams", 1) or 1
    return bool(beams > 1)


def _to(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
