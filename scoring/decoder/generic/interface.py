"""Registers two attention functions with transformers, which pass each layer's call on to the back end that runs it.

Under `SERVED` transformers builds no mask, since no mask function has that name; under `PROBED` it asks for one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

SERVED, PROBED = "mii_azure", "mii_azure_probed"

#: (batch, head, query, key) indices, which broadcast -> true where the query sees the key
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Listener(Protocol):
    """Receiver of the calls that one forward makes."""

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, said: dict[str, Any]) -> Tensor:
        """Attention of a layer for q [1, H, T, D], k and v [1, KV, T, D], rotated: [1, T, H, D]."""


class MaskListener(Listener, Protocol):
    """Receiver of the masks that one forward asks for, too."""

    def mask(self, function: MaskFunction, queries: int, keys: int) -> Tensor:
        """Tensor [1, 1, queries, keys] that stands for a mask in the layers' calls."""


_listening: ContextVar[Any] = ContextVar("listening")


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **said: Any
) -> tuple[Tensor, None]:
    return _listening.get().attend(module, query, key, value, attention_mask, said), None


def _mask(*, mask_function: MaskFunction, q_length: int, kv_length: int, **_: Any) -> Tensor:
    found: Tensor = _listening.get().mask(mask_function, q_length, kv_length)
    return found


def seal_attention() -> None:
    """Keep compilers out of the served attention: they compile what is before and after a call."""
    import torch

    AttentionInterface.register(SERVED, torch.compiler.disable(_attend))  # type: ignore[no-untyped-call,unused-ignore]


AttentionInterface.register(SERVED, _attend)
AttentionInterface.register(PROBED, _attend)
AttentionMaskInterface.register(PROBED, _mask)


def configs_of(model: Any) -> list[Any]:
    """Configurations, each once, in which the model's modules look up their attention."""
    own = [getattr(module, "config", None) for module in model.modules()]
    return list({id(each): each for each in own if hasattr(each, "_attn_implementation_internal")}.values())


@contextmanager
def listening(configs: Sequence[Any], listener: Listener, name: str = SERVED) -> Iterator[None]:
    """Pass the attention calls of this thread's forwards to a listener; before and after, the model is as it was."""
    before = [config._attn_implementation_internal for config in configs]
    token = _listening.set(listener)
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, own in zip(configs, before, strict=True):
            config._attn_implementation_internal = own
        _listening.reset(token)
