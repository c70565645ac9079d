"""A decoder over slots: a paged KV cache, one step for many sequences, sampling on the device.

    decoder = Decoder(hf_model, slots=8, max_length=1024)
    decoder.open(3, SamplingParams())      # a slot joins between steps
    decoder.prefill(3, prompt_ids)         # in one piece or several
    first = decoder.sample([3])            # from the prefill's logits
    later = decoder.step([3, 5])           # feeds each slot's last token, picks the next
    later.tokens()                         # waits for this step only; read it one step late

A slot is a row of the batch; its tokens lie in blocks, which it gets as it grows and `release` gives back. A sequence
opened with a salt shares the blocks of earlier ones that begin alike, unless layers keep recurrent states. On a CPU
every call is complete when it returns. On a GPU, `sample` and `step` only enqueue; tokens stay on the device between
steps, so a step need not wait for the tokens of the one before. All calls must come from one thread.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoring.decoder.adapters.builders import build, unsupported
from scoring.decoder.adapters.parts import steady_rotary
from scoring.decoder.back_ends import gpu_backend, plain_backend
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.block_tables import BlockTables
from scoring.decoder.drafts import Fed, Placed, Runs, speculate
from scoring.decoder.generic.model import GenericModel
from scoring.decoder.generic.probe import probe
from scoring.decoder.int4 import attach
from scoring.decoder.kv_cache import FP8, KVCache, SamplingParams
from scoring.decoder.layer_groups import STEP_TOKENS, group_layers
from scoring.decoder.logprobs import indices
from scoring.decoder.long_rotary import LongRotary
from scoring.decoder.low_rank import SlotAdapters
from scoring.decoder.model import DecoderModel, dequantize_weights, quantize_weights
from scoring.decoder.open_logits import OpenLogits
from scoring.decoder.pending import Pending, Ready
from scoring.decoder.pool_size import pool_blocks
from scoring.decoder.prompt_cost import PromptCost
from scoring.decoder.sampler import Added, add_to, pick_all
from scoring.distributed.tp_group import TensorParallelGroup
from scoring.errors import PromptTooLong
from scoring.passes.families import Tier


class Decoder:
    """A loaded transformers decoder served slot by slot; shares the model's weights.

    Raises LoadError for an unsupported model. `max_length` bounds prompt and generated tokens of a slot, and is reduced
    to the model's own positions and to `capacity`, the tokens that all slots can hold: up to `tokens` if given, within
    a `share` of a GPU's memory. With a `team`, the model is this rank's slice, and all ranks must make the same calls
    in the same order: each then gives its slots the same blocks.
    The tier is fused where an adapter builds the model, unless one is asked for; with `drafts` it may `speculate`.
    `fixed`: in the fused tier, an answer is the same bits alone and in company. `narrow`: the cache is in FP8.
    `rewinds`: tokens by which a sequence's `lengths` may be set back, for which its windows keep keys.
    """

    def __init__(
        self,
        hf_model: Any,
        slots: int,
        max_length: int,
        team: TensorParallelGroup | None = None,
        tokens: int = 0,
        share: float = 0.0,
        tier: Tier | None = None,
        drafts: bool = False,
        fixed: bool = False,
        narrow: bool = False,
        rewinds: int = 0,
    ) -> None:
        text = hf_model.config.get_text_config(decoder=True)
        bound = int(getattr(text, "max_position_embeddings", 0) or 0)
        length = min(max_length, bound) if bound and text.model_type != "bloom" else max_length
        self.unfit = unsupported(hf_model.config)  # for the fused tier
        self.tier: Tier = tier or ("generic" if self.unfit else "fused")
        if self.tier == "generic":
            length = min(length, steady_rotary(text) or length)
        self.model: DecoderModel | GenericModel
        generic = self.tier == "generic"
        self.model = probe(hf_model, length, self.unfit, team, slots) if generic else build(hf_model, length, team)
        self.recurrent = self.model.recurrent if isinstance(self.model, GenericModel) else None  # layers' states
        self.slots, dtype = slots, FP8 if narrow else self.model.dtype
        self.groups = groups = group_layers([own.rewound(rewinds) for own in self.model.kept], length)
        blocks = pool_blocks(self.model, groups, slots, length, tokens, share, dtype.itemsize)
        self.full_length = length  # before it is reduced to what the cache holds
        self.max_length = groups.longest(blocks, STEP_TOKENS[self.model.device.type], length)
        self.state = KVCache(self.model, slots, self.max_length, blocks, dtype, groups)
        self.capacity = min(slots * self.max_length, self.state.blocks // groups.count * BLOCK)
        self.tables = BlockTables(slots, self.state.width, self.state.blocks, self.state.in_place, groups.windows)
        self.lengths = [0] * slots  # the host's copy: known without asking the device
        self.rotary = LongRotary(self.model.steady, slots)
        self.fixed = fixed  # answers are the same bits alone and in company
        self.adapters = SlotAdapters(hf_model, self.model)
        self.plain = plain_backend(self.model, self.state, fixed, self.adapters)
        self._torch = self.adapters.around(self.plain)
        self._logits = OpenLogits()
        self._constrained: set[int] = set()  # slots whose tokens `sample` picks
        self._drafts = drafts and not self.model.steady and self.recurrent is None  # a draft reaches into neither
        self.draft: Decoder | None = None  # a small model's, which foretells tokens
        self.draft_cost = 0.0  # of one of its steps, in steps of this decoder
        self.rounds = False  # drafts come beside int8 steps too: their tokens are then those of the 16-bit weights
        self._last = self._picked = torch.empty(0)
        self._drafted: Runs | None = None  # a step with drafts, until the lengths of its slots are known
        self._unsettled: dict[int, int] = {}  # such slots, with their places among its runs
        self._cuda: Any = None
        self._start()

    @torch.inference_mode()
    def open(
        self, slot: int, sampling: SamplingParams | None = None, ids: Sequence[int] = (), salt: str | None = None
    ) -> int:
        """Empty a slot for a new sequence; with a salt, it begins with the longest cached prefix of its prompt `ids`.

        Returns the length of that prefix, whose tokens are not to be prefilled. Never all of the prompt.
        """
        sampling = sampling or SamplingParams()
        (self.state if self._cuda is None else self._cuda).open(slot, sampling, self.rotary.open(slot, ids))
        (self._constrained.add if sampling.constrained else self._constrained.discard)(slot)
        held = self.tables.open(slot, ids, self.rotary.salt(ids, salt) if self.recurrent is None else None)
        self.lengths[slot] = held
        self._unsettled.pop(slot, None)
        self._logits.drop([slot])
        self._sync()
        if held and sampling.repetition_penalty != 1.0:  # nothing else looks at them
            if self._cuda is not None:
                self._cuda.settle()
            self.state.seen[slot, indices(ids[:held], self.model.device)] = 1
        return held

    def choose(self, free: Collection[int], ids: Sequence[int], salt: str | None) -> int:
        """Choose one of the free slots, the first of which was left the longest ago, for a sequence."""
        return self.tables.choose(free, ids, self.rotary.salt(ids, salt))

    def evict(self, most: int) -> None:
        """Free blocks that are only kept for their contents, until at most `most` are left."""
        self.tables.evict(most)
        self._sync()

    def _sync(self) -> None:
        """Have the device follow the tables: copy blocks, enter new ones, and give back the memory of freed ones."""
        tables = self.tables
        for group, source, target in tables.copies:
            self.state.copy(group, source, target)
        if not self.state.in_place and tables.grown:
            (self.state if self._cuda is None else self._cuda).extend(tables.grown)
        self.state.discard(block for block in set(tables.pool.freed) if not tables.pool.users(block))
        tables.copies, tables.grown, tables.pool.freed = [], [], []

    def prefill(self, slot: int, ids: Sequence[int]) -> Tensor:
        """Append prompt tokens to a slot; logits [vocabulary] after the last one, which `sample` then uses.

        A long prompt can come in pieces. Raises PromptTooLong beyond `max_length`, DeviceFull when the slots' blocks
        are all in use, ValueError for no tokens or for a further piece where `recurrent` states do not take it.
        """
        return self.prefill_many([(slot, ids)])[0]

    @torch.inference_mode()
    def prefill_many(self, parts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        """Append prompt tokens to distinct slots in one forward; logits [slots, vocabulary] after the last of each.

        When it raises, no slot has changed, and each may be tried again.
        """
        self._check_parts(parts)
        placed = [(slot, self.lengths[slot], ids) for slot, ids in parts]
        self._reserve((slot, start + len(ids)) for slot, start, ids in placed)
        logits: Tensor = self._prefill(placed) if self._cuda is None else self._cuda.prefill(placed)
        for slot, ids in parts:
            self.lengths[slot] += len(ids)
            self.tables.written(slot, ids)
        self._logits.keep([slot for slot, _ in parts], logits)
        self._advance(slot for slot, _ in parts)
        return logits

    def _prefill(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> Tensor:
        rows = [slot for slot, _, ids in parts for _ in ids]
        tokens = torch.tensor([token for _, _, ids in parts for token in ids], dtype=torch.int64)
        self.state.seen[torch.tensor(rows), tokens] = 1
        logits = self._torch.prefill([(slot, start, len(ids)) for slot, start, ids in parts], tokens)
        for slot, start, ids in parts:
            self.state.lengths[slot] = start + len(ids)
        return logits

    @torch.inference_mode()
    def sample(self, slots: Sequence[int], masks: Tensor | None = None, added: Added = ()) -> Pending:
        """Pick the first token of slots whose prompt was just prefilled, and make it their next input.

        Also every later token of constrained slots, which `step` leaves open. Of masks [slots, words] int32 on the
        host, a set bit allows a token; `added` numbers are added to the logits of each slot, by token.
        """
        together = masks is not None and not any(added) and self._cuda is not None and self._logits.lent(slots)
        pending: Pending | None = self._cuda.put_off.sample(slots, masks) if together else None
        if pending is None:
            pick: Callable[..., Pending] = self._pick if self._cuda is None else self._cuda.sample
            pending = pick(list(slots), add_to(self.open_logits(slots), added), masks)
        self._logits.drop(slots)
        return pending

    @torch.inference_mode()
    def step(self, slots: Sequence[int]) -> Pending:
        """Feed each slot its last token and pick the next one; slots are distinct and were sampled before.

        Raises PromptTooLong or DeviceFull, before anything is computed, when a slot has no room. When it raises, no
        slot has changed.
        """
        self._settle()
        self._reserve(self._check_step(slots))
        self._logits.settle()
        longest = 1 + max(self.lengths[slot] for slot in slots)
        left = [slot for slot in slots if slot in self._constrained] if self._constrained else []
        step: Callable[..., Pending] = self._step if self._cuda is None else self._cuda.step
        pending = step(list(slots), longest, left)
        for slot in slots:
            self.lengths[slot] += 1
        if left:
            self._logits.lend(slots, left, self.last_logits(len(slots)))
        self._advance(slots)
        return pending

    def _step(self, slots: Sequence[int], longest: int, left: Collection[int]) -> Pending:
        rows = torch.tensor(list(slots), dtype=torch.int64, device=self.model.device)
        self._last = logits = self._torch.step(rows, longest)
        self.state.lengths[rows] += 1
        if not left:
            return self._pick(slots, logits)
        free = [row for row, slot in enumerate(slots) if slot not in left]
        picked = iter(self._pick([slots[row] for row in free], logits[free]).tokens() if free else ())
        tokens = [-1 if slot in left else next(picked) for slot in slots]
        self._picked = torch.tensor(tokens, device=self.model.device)
        return Ready(tokens)

    @property
    def speculates(self) -> bool:
        """Return True if `speculate` may be called: if asked for, and steps read the same weights, in this process."""
        rounded = isinstance(self.model, DecoderModel) and self.model.layers[0].attention.qkv.scale is not None
        return self._drafts and self.model.team is None and (self.rounds or not rounded)

    @torch.inference_mode()
    def speculate(self, fed: Sequence[Fed]) -> Runs:
        """Feed each slot its last token and a draft, and pick the next token after every one of them.

        Each slot goes on by the tokens that `step` would have picked one by one, as far as they are its draft, and one
        more; until they are read, `lengths` counts the first alone. Raises as `step` does. No drafts for slots with a
        repetition penalty, which they would change.
        """
        self._settle()
        self._check_parts(fed)
        self._reserve((slot, self.lengths[slot] + len(tokens)) for slot, tokens in fed)
        placed = [(slot, self.lengths[slot], tokens) for slot, tokens in fed]
        picked = self._speculate(placed) if self._cuda is None else self._cuda.speculate(placed)
        self._unsettled = {slot: place for place, (slot, _) in enumerate(fed)}
        for slot in self._unsettled:
            self.lengths[slot] += 1
        self._drafted = Runs(fed, picked.tokens, self._count)
        self._advance(self._unsettled)
        return self._drafted

    def _speculate(self, placed: Sequence[Placed]) -> Pending:
        self._last, self._picked = speculate(self._torch, self.state, placed)
        return Ready(self._picked.tolist())

    def _settle(self) -> None:
        """Read a step with drafts, so that lengths are known."""
        drafted, self._drafted = self._drafted, None
        if drafted is not None:
            drafted.runs()

    def _count(self, runs: Sequence[Sequence[int]]) -> None:
        """Count the tokens of a step with drafts that follow the first, of slots that were not released since."""
        for slot, place in self._unsettled.items():
            self.lengths[slot] += len(runs[place]) - 1

    def picked(self, count: int) -> Tensor:
        """Tokens [count] picked last, by `sample`, `step` or `speculate`: one a row of their logits."""
        tokens: Tensor = self._cuda.picked(count) if self._cuda is not None else self._picked
        return tokens

    def release(self, slot: int, ids: Sequence[int] | None = None) -> None:
        """Release a slot that will not be used before it is opened again.

        Its blocks are kept, until others need them, only if `ids` tells the tokens whose keys and values they hold.
        """
        self.tables.close(slot, None if ids is None else ids[: self.lengths[slot]])
        self.lengths[slot] = 0
        self._unsettled.pop(slot, None)
        self._sync()

    @torch.inference_mode()
    def feed(self, slot: int, token: int) -> None:
        """Replace a slot's next input, for teacher forcing."""
        if self._cuda is not None:
            self._cuda.put_off.finish()
            self._cuda.settle()
        self.state.tokens[slot] = token
        self.state.seen[slot, token] = 1

    def last_logits(self, count: int) -> Tensor:
        """Logits [count, vocabulary] of the last step's rows, as its sampling left them."""
        logits: Tensor = self._cuda.logits(count) if self._cuda is not None else self._last
        return logits

    def open_logits(self, slots: Sequence[int]) -> Tensor:
        """Logits [slots, vocabulary] from which `sample` is to pick."""
        return self._logits.of(slots)

    def warm_up(self, sizes: Sequence[int] | None = None) -> None:
        """Compile and capture, once, the step for batches of these sizes (default: every size up to the slots)."""
        if self._cuda is not None and not self._cuda.warm:
            self._cuda.warm_up(sizes)

    @torch.inference_mode()
    def plan(self) -> None:
        """Prepare libraries' state of each thread: called on the thread that will run this."""
        if self._cuda is not None:
            self._cuda.plan()

    @property
    def prompt_cost(self) -> PromptCost | None:
        """Time that chunks of prompts take on a GPU, measured by `warm_up`; None on a CPU."""
        cost: PromptCost | None = None if self._cuda is None else self._cuda.prompt_cost
        return cost

    @property
    def notes(self) -> list[str]:
        """Remarks on how a GPU runs the steps: without graphs, with compiled layers; none on a CPU."""
        return [] if self._cuda is None else list(self._cuda.notes)

    def drop(self) -> None:
        """Release what the decoder holds; it must not be used any more."""

    def use_int8(self, wanted: bool = True) -> None:
        """Make steps of one or two slots on a GPU read int8 weights, quantized now beside the others; or stop it.

        Of the fused tier only: the generic one's products are the model's own. On a CPU `plain.use_narrow` follows.
        """
        assert isinstance(self.model, DecoderModel)
        quantize_weights(self.model) if wanted else dequantize_weights(self.model)
        self._start()

    def use_shipped(self, hf_model: Any, rest: bool) -> int:
        """Make those steps read the int4 or int8 weights in the folder of the model, where it has them; `attach` tells.

        Of the fused tier only. Raises WeightsUnreadable if the folder has changed.
        """
        assert isinstance(self.model, DecoderModel)
        count = attach(self.model, hf_model, rest)
        self._start()
        return count

    def _start(self) -> None:
        """Start the GPU back end over the model as it is; its graphs are captured on use or by `warm_up`."""
        self._cuda = None  # frees the previous back end's memory first
        if self.model.device.type == "cuda":
            self._cuda = gpu_backend(self.model, self.state, self._drafts, self.fixed, self.adapters)

    def _pick(self, slots: Sequence[int], logits: Tensor, masks: Tensor | None = None) -> Pending:
        rows = torch.tensor(list(slots), dtype=torch.int64, device=self.model.device)
        tokens = pick_all(logits, self.state, rows, masks)
        self._picked = chosen = torch.tensor(tokens, dtype=torch.int64, device=self.model.device)
        if self.model.team is not None:
            self.model.team.agree(chosen)
        self.state.tokens[rows] = chosen
        self.state.seen[rows, chosen] = 1
        return Ready(tokens)

    def _reserve(self, lengths: Iterable[tuple[int, int]]) -> None:
        for slot, length in lengths:
            self.tables.reserve(slot, length)
        if self.tables.grown:
            self._sync()

    def _advance(self, slots: Iterable[int]) -> None:
        """Give up blocks before the slots' windows, of which what is enqueued already may still read."""
        if any(self.tables.windows):
            for slot in slots:
                self.tables.advance(slot, self.lengths[slot])
            self._sync()

    def _check_parts(self, parts: Sequence[tuple[int, Sequence[int]]]) -> None:
        for slot, ids in parts:
            if not ids:
                raise ValueError("a prefill needs at least one token")
            self._check_room(slot, len(ids))
        self.tables.check((slot, self.lengths[slot] + len(ids)) for slot, ids in parts)

    def _check_step(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Return the slots that need another block for their next token, with their lengths then."""
        self._check_room(max(slots, key=self.lengths.__getitem__), 1)
        growing = [(slot, self.lengths[slot] + 1) for slot in slots if not self.lengths[slot] % BLOCK]
        self.tables.check(growing)
        return growing

    def _check_room(self, slot: int, count: int) -> None:
        if self.lengths[slot] + count > self.max_length:
            raise PromptTooLong(
                f"The sequence would have {self.lengths[slot] + count} tokens; a slot holds {self.max_length}.",
                "Send a shorter prompt, or ask for fewer new tokens.",
            )
