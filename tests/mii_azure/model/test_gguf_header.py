"""Headers of GGUF files: what gguf's own reader reads, and odd or damaged ones, each with a sentence and a remedy."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mii_azure.errors import MiiAzureError, NotAvailable, WeightsCorrupt
from mii_azure.model.gguf_header import TextList, numbers, read_header, stored
from mii_azure.model.gguf_tokenizer import tokenizer_of
from mii_azure.model.source import resolve
from tests.tiny_gguf import finish, tiny_gguf, write_gguf


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "qwen2")[0]


def test_it_reads_what_ggufs_own_reader_reads(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", "qwen3", "Q4_K")
    header, theirs = read_header(file), gguf.GGUFReader(file)
    for name, told in header.fields.items():
        value = theirs.fields[name].contents()
        if isinstance(told, TextList):
            assert told.decoded() == value, name
        else:
            assert told == (pytest.approx(value) if isinstance(told, float) else value), name
    assert {f"GGUF.{name}" for name in ("version", "tensor_count", "kv_count")} | header.fields.keys() == {
        *theirs.fields
    }
    for ours, other in zip(header.tensors, theirs.tensors, strict=True):
        assert (ours.name, ours.kind, ours.at) == (other.name, other.tensor_type, other.data_offset)
        assert ours.shape == tuple(reversed(other.shape.tolist()))
        assert np.array_equal(stored(ours), other.data)


def test_numbers_are_the_shortest_that_are_stored_so(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_array("llama.few", [1, 2])
    writer.add_tensor("factors", np.array([1.1, 2.0], np.float32))
    finish(writer)
    header = read_header(tmp_path / "a.gguf")
    assert header.get("attention.layer_norm_rms_epsilon") == 1e-6 and header.get("few") == [1, 2]
    assert numbers(header.tensors[0]) == [1.1, 2.0]


def _version(number: int, order: str = "<") -> Callable[[bytes], bytes]:
    return lambda content: content[:4] + struct.pack(f"{order}I", number) + content[8:]


def _replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new, 1)


def _tensor_field(place: int, number: int, form: str) -> Callable[[bytes], bytes]:
    """Set a number of the first tensor's entry, `place` bytes after its name."""

    def changed(content: bytes) -> bytes:
        at = content.index(b"output_norm.weight") + len("output_norm.weight") + place
        return content[:at] + struct.pack(form, number) + content[at + struct.calcsize(form) :]

    return changed


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (_version(1), NotAvailable, "version 1; read are 2 and 3"),
        (_version(9), NotAvailable, "version 9"),
        (_version(3, ">"), NotAvailable, "big-endian"),
        (_tensor_field(12, 99, "<I"), NotAvailable, "type 99, which gguf does not know"),
        (_tensor_field(0, 7, "<I"), WeightsCorrupt, "has 7 dimensions"),
        (_tensor_field(4, 0, "<Q"), WeightsCorrupt, "has the shape"),
        (_tensor_field(4, 2**62, "<Q"), WeightsCorrupt, "ends at byte"),
        (_tensor_field(16, 32, "<Q"), WeightsCorrupt, "does not begin where"),
        (_replaced(b"blk.0.attn_k.bias", b"blk.0.attn_q.bias"), WeightsCorrupt, "it has blk.0.attn_q.bias twice"),
        (_replaced(b"qwen2.context_length", b"qwen2.conte\xff\xfe_length"), WeightsCorrupt, "cut short"),
        (_replaced(b"qwen2.block_count\x04", b"qwen2.block_count\x0d"), WeightsCorrupt, "unknown type 13"),
    ],
)
def test_an_odd_header(
    change: Callable[[bytes], bytes], error: type[MiiAzureError], told: str, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd.gguf").write_bytes(change(plain.read_bytes()))
    with pytest.raises(error, match=told) as caught:
        read_header(tmp_path / "odd.gguf")
    assert caught.value.hint and "odd.gguf" in str(caught.value)


def test_version_2_is_read(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(_version(2)(plain.read_bytes()))
    assert resolve(str(tmp_path / "a.gguf")).config == resolve(str(plain)).config


def test_any_damage_of_a_header_is_told(plain: Path, tmp_path: Path) -> None:
    """Bytes changed at random: read as it is, or refused; never a traceback."""
    content, chance = plain.read_bytes(), random.Random(7)
    end = read_header(plain).tensors[0].at
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(end)] = chance.randrange(256)
        (tmp_path / "a.gguf").write_bytes(damaged)
        try:
            resolve(str(tmp_path / "a.gguf"))
        except MiiAzureError as error:
            assert error.hint
            refused += 1
    assert refused > 30


def test_a_value_of_another_type_is_told(tmp_path: Path) -> None:
    """Each key as a text, a list or a large number: planned, its tokenizer made, or refused; never a traceback."""
    keys = [
        key for key in read_header(write_gguf(tmp_path / "plain.gguf", "qwen2")[0]).fields if "architecture" not in key
    ]
    refused = 0
    for key in keys:
        for value in ("four", [3, 4], 2**31):
            file, _, _ = write_gguf(tmp_path / "odd.gguf", "qwen2", parts=_told(key, value))
            try:
                resolve(str(file))
                tokenizer_of(read_header(file), 128)
            except MiiAzureError as error:
                assert error.hint
                refused += 1
    assert refused > len(keys)


def _told(key: str, value: Any) -> Callable[[gguf.GGUFWriter], list[str]]:
    def parts(writer: gguf.GGUFWriter) -> list[str]:
        writer.kv_data[0].pop(key)
        {str: writer.add_string, list: writer.add_array, int: writer.add_uint64}[type(value)](key, value)
        return []

    return parts
