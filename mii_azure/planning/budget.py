"""Budget of a device's memory, and the room for requests that it leaves."""

from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure.hardware.skus import Sku
from mii_azure.model.families import Family
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning.demand import Demand
from mii_azure.platform import limits
from mii_azure.platform.limits import GB
from mii_azure.spec import CACHED_TASKS
from scoring.decoder.block_pool import BLOCK
from scoring.decoder.layer_groups import STEP_TOKENS, Kept, LayerGroups, group_layers
from scoring.limits.memory_shares import DRAFT_CACHE_TOKENS, LEAST_CACHE_TOKENS
from scoring.passes.families import LONGEST_HEAD, SLICED_DECODERS, decoder_tier


class Memory(BaseModel):
    """Memory budget in bytes on the device that holds the weights (on each one, if they are sliced)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: int
    kv_cache: int
    activations: int
    context: int  # CUDA context and libraries, or the Python process on CPU
    available: int

    @property
    def needed(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.context


class Work(NamedTuple):
    """Workload to place: a model, its family, its task, and what is asked of its memory."""

    profile: Profile
    family: Family
    task: str
    demand: Demand = Demand()
    draft: Profile | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights on disk, a draft model's included."""
        return self.profile.weight_bytes + (self.draft.weight_bytes if self.draft else 0)

    @property
    def context(self) -> int:
        """Tokens of one request to make room for: as asked, or the model's own."""
        return self.demand.context or self.profile.context_length

    @property
    def least_context(self) -> int:
        """Tokens below which the model does not count as fitting: what was asked is never cut."""
        return self.demand.context or min(self.profile.context_length, limits.MIN_CONTEXT)


class Room(NamedTuple):
    """Room for requests on a device."""

    tokens: int  # in one batch, padded
    context: int  # of one request
    rows: int  # sequences at once, in one batch or in a paged cache
    pool: int = 0  # tokens of the paged cache, of all sequences together; 0: it runs batches


def device_of(sku: Sku) -> str:
    return "cuda" if sku.gpu else "cpu"


def is_paged(work: Work, sku: Sku, gpus: int) -> bool:
    """True if sequences of the model share a paged cache there, and need not be batches."""
    family = work.profile.family
    served = decoder_tier(family).tier is not None and (gpus == 1 or family in SLICED_DECODERS)
    served = served and work.profile.widest_head <= LONGEST_HEAD
    able = sku.gpu is not None and sku.gpu.compute_capability >= limits.BF16_COMPUTE_CAPABILITY
    return able and work.demand.paged and work.task in CACHED_TASKS and served


def most_rows(work: Work, sku: Sku, paged: bool) -> int:
    """Most sequences at once, as asked or as the device gains by."""
    most = limits.MAX_SEQUENCES if paged else limits.MAX_BATCH_SIZE[device_of(sku)]
    return work.demand.concurrency or most


_PIECE = STEP_TOKENS["cuda"]
Budget = Callable[[int, int], Memory]  # of tokens in one batch, and of tokens whose keys and values are kept


def batched_room(work: Work, sku: Sku, rows: int, budgeted: Budget, headroom: float) -> tuple[Room, Memory]:
    """Largest batch that fits with headroom; its keys and values are the batch's own."""
    least, tokens = work.least_context, max(limits.MAX_BATCH_TOKENS[device_of(sku)], work.context)
    if work.profile.kind == "diffusion":
        least = image_tokens(work.profile)
        tokens = limits.MAX_BATCH_IMAGES[device_of(sku)] * least
    expected = (work.demand.concurrency or 0) * work.demand.tokens(work.context)
    memory = budgeted(tokens, max(tokens, expected))
    while memory.needed * headroom > memory.available and tokens > least:
        tokens = max(tokens // 2, least)
        memory = budgeted(tokens, max(tokens, expected))
    if work.profile.kind == "diffusion":
        rows = max(1, min(tokens // least, work.demand.concurrency or tokens))
    return Room(tokens, min(work.context, tokens), rows), memory


def paged_room(work: Work, sku: Sku, rows: int, budgeted: Budget, headroom: float) -> tuple[Room, Memory]:
    """Paged cache of all that is left beside weights and pieces of prompts, and the sequences expected to fill it.

    Requests that still run in batches (beam search, say) use the headroom, unless a share of the memory is asked for.
    """
    groups = layer_groups(work, work.context)
    numbers = _kept_numbers(work.profile)
    held = budgeted(0, groups.room * BLOCK).kv_cache - state_bytes(work, sku, rows)
    each = max(1.0, held / (BLOCK * numbers))  # bytes of a token
    least = _least_pool(work.least_context, groups)
    for spare in (1.0,) if work.demand.share else (limits.HEADROOM["cuda"], headroom):
        tokens = limits.MAX_BATCH_TOKENS["cuda"]
        while _left(memory := budgeted(tokens, 0), spare) < limits.CACHE_TO_BATCH * memory.activations:
            if tokens <= limits.MIN_CONTEXT:
                break
            tokens //= 2
        pool = int(_left(memory, spare) / each)
        if not work.profile.kv_bytes_per_token:  # its sequences take no more, however long they are
            pool = min(pool, _in_grains(rows * work.context))
        if pool >= least:
            break
    pool = max(pool - pool % limits.CACHE_GRAIN, least)  # too much for the memory where nothing fits
    context = groups.longest(pool_blocks(groups, pool), _PIECE, work.context)
    groups = layer_groups(work, context)  # as the engine makes them, for that context
    most = groups.at_once(pool_blocks(groups, pool), work.demand.tokens(context), _PIECE)
    kept = -(-pool * groups.room // numbers)  # with what no layer fills
    return Room(tokens, context, min(rows, most), pool), budgeted(tokens, kept)


def layer_groups(work: Work, context: int) -> LayerGroups:
    """Groups of the model's layers in a paged cache, by what they keep."""
    return group_layers(_kept(work.profile), context)


def _kept(profile: Profile) -> list[Kept]:
    """Keys and values that each layer keeps, of those that keep any."""
    if profile.cached_layers:
        return [Kept(own.window, own.heads, own.head_dim) for own in profile.cached_layers for _ in range(own.layers)]
    shape, windowed = (profile.kv_heads, profile.head_dim), profile.windowed_layers
    return [Kept(0, *shape)] * (profile.layers - windowed) + [Kept(profile.window, *shape)] * windowed


def _kept_numbers(profile: Profile) -> int:
    """Numbers of a token's keys in all layers."""
    return sum(own.heads * own.width for own in _kept(profile))


def pool_blocks(groups: LayerGroups, pool: int) -> int:
    """Number of blocks of a paged cache that holds `pool` tokens in all layers."""
    return pool // BLOCK * groups.count


def seen_tokens(work: Work, tokens: int) -> int:
    """Tokens whose keys and values a step reads of a sequence of `tokens` tokens, on average over the layers.

    More than there are where several layers read the same.
    """
    profile = work.profile
    if profile.cached_layers:
        read = sum(own.read(tokens) for own in profile.cached_layers)
        return read // sum(own.numbers for own in profile.cached_layers)
    less = max(0, tokens - profile.window) * profile.windowed_layers
    return tokens - less // profile.layers


def _least_pool(context: int, groups: LayerGroups) -> int:
    """Least tokens of a pool that holds a sequence of `context` tokens and that a decoder begins with."""
    blocks = groups.blocks(context, min(context, _PIECE))
    return _in_grains(max(-(-blocks // groups.count) * BLOCK, min(context, LEAST_CACHE_TOKENS)))


def _in_grains(tokens: int) -> int:
    """Round the tokens of a cache up to whole grains."""
    return -(-tokens // limits.CACHE_GRAIN) * limits.CACHE_GRAIN


def _left(memory: Memory, spare: float) -> int:
    return max(0, int(memory.available / spare) - memory.needed)


def _available(sku: Sku, share: float | None) -> int:
    if sku.gpu:
        return int(sku.gpu_memory_gb * GB * (share or limits.GPU_USABLE))
    return max(int(sku.ram_gb * GB) - limits.HOST_BYTES, 0)


def budget(work: Work, sku: Sku, dtype: str, rows: int, gpus: int, held: float, tokens: int, kept: int) -> Memory:
    """Memory of a batch of `tokens` tokens, beside the keys and values of `kept` tokens."""
    profile, item = work.profile, DTYPE_BYTES[dtype]
    return Memory(
        # Adapters are held once for all, those in use once more, one after another, and all again as steps read them.
        weights=int(_own_parameters(profile, gpus) * item * held)
        + 3 * work.demand.adapters * item
        + draft_bytes(work, dtype),
        # Fewer heads are repeated.
        kv_cache=kv_bytes_per_token(work, dtype) * kept // min(gpus, profile.kv_heads or 1)
        + state_bytes(work, sku, rows),
        activations=_activations(work, tokens, rows, item, device_of(sku)),
        context=limits.CUDA_CONTEXT_BYTES if sku.gpu else limits.PROCESS_BYTES,
        available=_available(sku, work.demand.share),
    )


def state_bytes(work: Work, sku: Sku, rows: int) -> int:
    """Bytes of the recurrent states of so many sequences; on a GPU twice, since a step computes on copies of them."""
    return work.profile.state_bytes * rows * (2 if sku.gpu else 1)


def rows_with_states(work: Work, sku: Sku, most: int, budgeted: Callable[[int], Memory]) -> int:
    """Sequences at once whose recurrent states take half of what weights leave at most, unless a number is asked for.

    `budgeted` is the memory of so many sequences, without a token of any.
    """
    if work.demand.concurrency or not work.profile.state_bytes:
        return most
    memory = budgeted(0)
    return max(1, min(most, (memory.available - memory.needed) // 2 // state_bytes(work, sku, 1)))


def kv_bytes_per_token(work: Work, dtype: str) -> int:
    """Bytes of a token's keys and values, in the type that they are kept in where the model is served in another."""
    item = 1 if work.demand.narrow else DTYPE_BYTES[dtype]
    return work.profile.kv_bytes_per_token * item // DTYPE_BYTES[work.profile.dtype]


def draft_bytes(work: Work, dtype: str) -> int:
    """Bytes that a draft model takes, weights and cache, in the type of the model; 0 without one."""
    if work.draft is None:
        return 0
    item = DTYPE_BYTES[dtype]
    each = work.draft.kv_bytes_per_token * item // DTYPE_BYTES[work.draft.dtype]
    return work.draft.parameters * item + each * DRAFT_CACHE_TOKENS


def at_once(work: Work, room: Room) -> tuple[tuple[int, int], ...]:
    """Requests that a paged cache holds at once, for lengths within the context: (tokens of each, how many)."""
    if not room.pool:
        return ()
    most = work.demand.concurrency or limits.MAX_SEQUENCES
    lengths = [*(length for length in limits.TOLD_LENGTHS if length < room.context), room.context]
    groups = layer_groups(work, room.context)
    blocks = pool_blocks(groups, room.pool)
    return tuple((length, min(most, groups.at_once(blocks, length, _PIECE))) for length in lengths)


def _own_parameters(profile: Profile, gpus: int) -> int:
    """Parameters on each of `gpus` GPUs: products are sliced, but neither the embedding nor a static decoder's head."""
    if gpus == 1:
        return profile.parameters
    tables = 2 if profile.family in SLICED_DECODERS else 1  # a head tied to the embedding counts twice, to be safe
    whole = min(tables * profile.vocab_size * profile.hidden_size, profile.parameters)
    return whole + (profile.parameters - whole) // gpus


def image_tokens(profile: Profile) -> int:
    """Tokens of a batch that one image takes: its latent positions and its prompt's tokens, both at full size."""
    side = (profile.image_size or limits.IMAGE_SIZE) // limits.LATENT_SCALE
    return side * side + (profile.context_length or limits.PROMPT_TOKENS)


def _drawing_bytes(profile: Profile, tokens: int, item: int) -> int:
    """Bytes of a batch through the UNet, images doubled for guidance, then one image through the VAE's widest maps."""
    unet = 2 * tokens * profile.hidden_size * limits.UNET_WIDTHS * item
    side = profile.image_size or limits.IMAGE_SIZE
    return unet + side * side * limits.VAE_CHANNELS * limits.VAE_MAPS * item


def _activations(work: Work, tokens: int, rows: int, item: int, device: str) -> int:
    """Bytes alive at the widest point of a forward pass over `tokens` tokens: a layer's values, scores, logits."""
    profile = work.profile
    if profile.kind == "diffusion":
        return _drawing_bytes(profile, tokens, item)
    layer = tokens * profile.hidden_size * limits.ACTIVATION_WIDTHS * item
    length = min(work.context, tokens)
    scores = 0 if work.family.sdpa else 2 * profile.heads * tokens * length * item
    rows = tokens if work.task == "fill-mask" else rows if profile.kind != "encoder" else 0
    graphs = limits.GRAPHED_BUFFERS * layer if profile.kind == "encoder" and device == "cuda" else 0
    return layer + graphs + scores + 2 * rows * profile.vocab_size * 4
