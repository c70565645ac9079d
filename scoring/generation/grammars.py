"""Grammars of answers, by llguidance: compiled once, run beside a sequence, a mask of allowed tokens at each step.

Whatever compiles is kept exactly: llguidance refuses what it cannot hold to. Compiling recurses as deep as a grammar
refers, so it has a thread of its own with a stack that no text within `MOST_GRAMMAR` exhausts.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import torch
from torch import Tensor

from scoring.errors import InvalidParameter, RequestTimeout
from scoring.generation.grammar_text import grammar_text, place_of_fault
from scoring.generation.mark_texts import told_vocabulary
from scoring.limits.cpus import cores
from scoring.limits.deadline import left
from scoring.schema.structured import Constraint

_KEPT = 128  # compiled grammars
_THREADS = 8  # for masks: more were no faster, and all wait for the last, which a busy host may keep from its core
_STACK = 256 << 20  # bytes of address space
#: What one grammar may take: time to compile, at about 50,000 units of fuel a millisecond, and of each of its steps.
_BOUNDS: dict[str, Any] = {
    "initial_lexer_fuel": 2_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 10_000,
    "max_grammar_size": 20_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}
_PICTURE = re.compile(r"\n +\d+ \| |\n<")  # of the lines around a fault, and what else follows
_REMEDY = "Simplify it: see docs/requests.md for what is kept."


class Grammar:
    """State of one sequence in its grammar; `ended` once nothing may follow."""

    def __init__(self, matcher: Any, where: str) -> None:
        self.matcher = matcher
        self.ended = False
        self._where = where

    def check(self) -> None:
        """Raise InvalidParameter if the last step exceeded its bounds: the grammar has become too complex to go on."""
        if self.matcher.is_error():
            raise InvalidParameter(f"The grammar cannot go on: {_fault(self.matcher)}.", _REMEDY, self._where)


class Grammars:
    """Compiled grammars of one tokenizer, which is read when the first grammar comes (seconds for 150,000 tokens).

    `vocabulary` counts the logits.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = list(ends)
        self._tokens = max(vocabulary, len(tokenizer))
        self.words = -(-self._tokens // 32)
        self._known: OrderedDict[Constraint, Any] = OrderedDict()  # matchers at their beginnings
        self._lock = threading.Lock()
        self._vocabulary: Any = None  # llguidance's
        self._executor: Any = None

    def start(self, constraint: Constraint) -> Grammar:
        """A grammar at its beginning; raises InvalidParameter, with the place, for one that cannot be compiled."""
        with self._lock:
            matcher = self._known.get(constraint)
            if matcher is not None:
                self._known.move_to_end(constraint)
        if matcher is None:
            matcher = self._wait(constraint)
            with self._lock:
                self._known[constraint] = matcher
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return Grammar(matcher.deep_copy(), constraint.where)

    def advance(self, grammars: Sequence[Grammar], tokens: Sequence[int]) -> None:
        """Have each take its next token; inference thread only. `check` tells which cannot go on.

        One takes 3 microseconds: to wake threads for 32 takes longer.
        """
        for grammar, token in zip(grammars, tokens, strict=True):
            grammar.matcher.consume_token(token)
            grammar.ended = bool(grammar.matcher.is_stopped())

    def masks(self, grammars: Sequence[Grammar]) -> Tensor:
        """Masks [grammars, words] int32 of the tokens that each allows next; inference thread only."""
        masks = torch.empty(len(grammars), self.words, dtype=torch.int32, pin_memory=torch.cuda.is_available())
        width = self.words * 4
        if len(grammars) == 1:
            grammars[0].matcher.unsafe_compute_mask_ptr(masks.data_ptr(), width)
        else:
            numbered = [(grammar.matcher, number) for number, grammar in enumerate(grammars)]
            self._executor.unsafe_compute_mask_ptr(numbered, masks.data_ptr(), width, len(grammars))
        for grammar in grammars:
            grammar.check()
        return masks

    def _wait(self, constraint: Constraint) -> Any:
        try:
            return _worker.run(lambda: self._compile(constraint)).result(left())
        except FutureTimeout:
            raise RequestTimeout("The grammar was not compiled in time.", _REMEDY) from None

    def _compile(self, constraint: Constraint) -> Any:
        if self._vocabulary is None:
            self._vocabulary, self._executor = _read(self._tokenizer, self._tokens, self._ends)
        matcher = self._matcher(constraint)
        if matcher.is_error():
            said = _fault(matcher)
            inner = place_of_fault(constraint, lambda part: _fault(self._matcher(part)) == said)
            where = f"{constraint.where}{inner}"
            raise InvalidParameter(f"It cannot be kept: {said}.", _REMEDY, where)
        return matcher

    def _matcher(self, constraint: Constraint) -> Any:
        """A matcher that has taken its first step, since some faults show only there."""
        from llguidance import LLMatcher, LLParserLimits

        text = grammar_text(constraint)
        matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=LLParserLimits(**_BOUNDS))
        if not matcher.is_error():
            matcher.compute_bitmask()
        return matcher


def _read(tokenizer: Any, tokens: int, ends: list[int]) -> tuple[Any, Any]:
    """Read a vocabulary with its end tokens for llguidance; raises InvalidParameter if that cannot be done."""
    try:
        from llguidance import LLExecutor, LLTokenizer

        slices, told = LLTokenizer.json_slices(), told_vocabulary(tokenizer)
        vocabulary = LLTokenizer(told, n_vocab=tokens, eos_token=ends or tokenizer.eos_token_id, slices=slices)
        return vocabulary, LLExecutor(min(_THREADS, cores()))
    except ImportError:
        remedy = "Install llguidance, which the bundle's lock has."
        raise InvalidParameter("No grammars are served here: llguidance is missing.", remedy) from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InvalidParameter(f"No grammar can bind this model's tokenizer: {reason}.") from None


def _fault(matcher: Any) -> str:
    """Error of a matcher about its grammar, without the excerpt that follows it; empty if there is none."""
    told = _PICTURE.split(matcher.get_error())[0]
    return " ".join(told.split())[:300].rstrip(".")


class _Worker:
    """A thread with a large stack, started with the first call; calls run one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._busy = False

    def run(self, call: Callable[[], Any]) -> "Future[Any]":
        """Run a call; its result or error comes in the future."""
        future: Future[Any] = Future()
        with self._lock:
            self._calls.append((call, future))
            if not self._busy:
                self._busy = True
                self._start()
        return future

    def _start(self) -> None:
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=self._work, name="grammars", daemon=True).start()
        finally:
            threading.stack_size(before)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._busy = False
                    return
                call, future = self._calls.pop(0)
            try:
                future.set_result(call())
            except BaseException as error:  # a panic of llguidance is no Exception
                future.set_exception(
                    error if isinstance(error, Exception) else InvalidParameter("The grammar is refused.", _REMEDY)
                )


_worker = _Worker()
