"""Memory of the GPUs of other processes on this host, mapped by CUDA's inter-process handles.

torch's symmetric memory does the same, but numbers its exchanges per process: ranks of which one has met others before,
as rank 0 has after a reload, wait for each other without end.
"""

import contextlib
import ctypes
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * _HANDLE_BYTES),)


class PeerMemory:
    """Addresses, valid on this rank's GPU, of one tensor that every rank has; they hold while this object lives."""

    def __init__(self, addresses: list[int]) -> None:
        self.addresses = addresses


def exchange(own: Tensor, rank: int) -> PeerMemory:
    """Map every rank's tensor, which have one shape; a collective call.

    Raises OSError if the driver refuses, on every rank if a handle is missing: expandable segments have none.
    """
    try:
        told = _handle_of(own)
    except OSError:
        told = bytes(_HANDLE_BYTES + 8)  # the others wait for it all the same
    mine = torch.frombuffer(bytearray(told), dtype=torch.uint8).to(own.device)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    records = [bytes(each.tolist()) for each in gathered]
    if not all(any(record) for record in records):
        raise OSError("a rank's memory cannot be shared between processes")
    with torch.cuda.device(own.device):
        bases = {each: _open(record[:_HANDLE_BYTES]) for each, record in enumerate(records) if each != rank}
    offsets = [int.from_bytes(record[_HANDLE_BYTES:], "little") for record in records]
    found = PeerMemory(
        [own.data_ptr() if each == rank else bases[each] + offsets[each] for each in range(len(records))]
    )
    weakref.finalize(found, _close, list(bases.values()))
    return found


def _handle_of(own: Tensor) -> bytes:
    """Handle of the allocation that holds a tensor, and the tensor's offset in it."""
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    with torch.cuda.device(own.device):
        address = ctypes.c_uint64(own.data_ptr())
        _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    return bytes(handle.reserved) + (own.data_ptr() - base.value).to_bytes(8, "little")


def _open(handle: bytes) -> int:
    address = ctypes.c_uint64()
    _call(
        "cuIpcOpenMemHandle_v2",
        ctypes.byref(address),
        _Handle.from_buffer_copy(handle),
        ctypes.c_uint(_LAZY_PEER_ACCESS),
    )
    return address.value


def _close(addresses: list[int]) -> None:
    with contextlib.suppress(OSError):  # a context that is gone has unmapped them
        for address in addresses:
            _call("cuIpcCloseMemHandle", ctypes.c_uint64(address))


def _call(name: str, *arguments: Any) -> None:
    status = getattr(ctypes.CDLL("libcuda.so.1"), name)(*arguments)
    if status:
        raise OSError(f"{name} failed with CUDA error {status}")
