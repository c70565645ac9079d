"""Snapshot of a model before a pass: its modules and their contents, restored whatever the pass raised.

Weights are not copied, which would double the model's memory: a few numbers of each are kept, and show whether
they are still the same. If not, the model is loaded again.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scoring.errors import PassNotServed

logger = logging.getLogger("mii_azure.passes")

_SAMPLES = 8  # along the first and the last dimension of a weight


class PlainForm:
    """A model's modules, weights and attributes as they were."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._states = [(each, _shallow(vars(each))) for each in _parts(model)]
        self._weights = _samples(model)

    def intact(self) -> bool:
        """Return True if the weights are unchanged, and where they were."""
        now = _samples(self._model)
        return now.keys() == self._weights.keys() and all(
            _same(now[name], kept) for name, kept in self._weights.items()
        )

    def kept(self) -> bool:
        """Check and restore a model after a pass undid itself; False if the model has been loaded again."""
        before = {id(part) for part, _ in self._states if part is not self._model}
        loaded_again = before.isdisjoint(id(part) for part in _parts(self._model))
        return False if loaded_again and self.intact() else self.restore()

    def kept_after(self, undo: Callable[[], None]) -> bool:
        """Undo a pass, or restore the snapshot if its undo fails; False if the model had to be loaded again."""
        try:
            undo()
        except Exception:
            logger.exception("what was applied cannot be undone: the model is put back")
            return self.restore()
        return self.kept()

    def restore(self) -> bool:
        """Restore everything; False if weights were changed, so that the model had to be loaded again."""
        for part, state in self._states:
            vars(part).clear()
            vars(part).update(_shallow(state))
        if self.intact():
            return True
        logger.warning("weights were changed: the model is loaded again")
        reload_whole(self._model)
        return False


def reload_whole(model: Any) -> None:
    """Load a model again; raises PassNotServed if that is not possible."""
    from scoring.passes.hf_verify import reload

    try:
        reload(model)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise PassNotServed(
            f"A pass broke the model, which cannot be loaded again: {said}.", "Switch the pass off; the log names it."
        ) from error


def _parts(model: Any) -> Iterator[Any]:
    """The model and its modules, including those of a pipeline's parts."""
    if not isinstance(model, nn.Module):
        yield model
    for part in [model] if isinstance(model, nn.Module) else vars(model).values():
        if isinstance(part, nn.Module):
            yield from part.modules()


def _shallow(state: dict[str, Any]) -> dict[str, Any]:
    """Attributes, with copies of the dictionaries among them: parameters, modules, buffers, hooks."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in state.items()}


def _samples(model: Any) -> dict[str, tuple[torch.device, Tensor]]:
    found = {}
    for number, part in enumerate(_parts(model)):
        if isinstance(part, nn.Module):
            own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
            found.update({f"{number}.{name}": (tensor.device, _sample(tensor)) for name, tensor in own})
    return found


def _sample(tensor: Tensor) -> Tensor:
    picked = tensor.detach()
    if picked.dim():
        picked = picked[:: max(1, picked.shape[0] // _SAMPLES)]
        picked = picked[..., :: max(1, picked.shape[-1] // _SAMPLES)]
    return picked.clone()


def _same(one: tuple[torch.device, Tensor], other: tuple[torch.device, Tensor]) -> bool:
    (here, found), (there, kept) = one, other
    return here == there and found.shape == kept.shape and bool(torch.equal(found, kept))
