"""Placeholders for absent tensors and norms, which kernels take and do not read."""

from torch import Tensor

from scoring.decoder.model import Norm


def given(tensor: Tensor | None, absent: Tensor) -> Tensor:
    """The tensor, or if there is none the placeholder."""
    return absent if tensor is None else tensor


def affine(norm: Norm | None, absent: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and shift of a norm."""
    return (absent, absent) if norm is None else (norm.gain, given(norm.shift, absent))


def kind(norm: Norm | None) -> str:
    """Kind of a norm, "none" without one."""
    return "none" if norm is None else norm.kind


def epsilon(norm: Norm | None) -> float:
    """Epsilon of a norm, 0 without one."""
    return 0.0 if norm is None else norm.eps
