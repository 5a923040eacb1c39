"""Chunks: every bit of every dtype comes back, and what is no chunk of ours is refused before anything is allocated for it."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.checkpoint_files import bits
from trainenv.tools.tensor_file import compression

SHAPES = [(), (0,), (1,), (7,), (3, 5), (0, 4), (2, 0, 3), (1, 1, 1), (2, 3, 4, 5)]
# What a copy by value might lose: NaNs of many payloads, both zeros, infinities, denormals. As float32 words.
ODD = [
    0x7FC00000,
    0xFFC00000,
    0x7FC12345,
    0x7F800001,
    0xFF812345,
    0x00000000,
    0x80000000,
    0x7F800000,
    0xFF800000,
    1,
    0x80000001,
]


def noise(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Any bits at all, so NaNs, denormals and infinities too; for bool 0 and 1, for nothing else is one."""
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(
        0,
        2 if dtype == torch.bool else 256,
        (count,),
        generator=torch.Generator().manual_seed(seed),
    )
    return raw.to(torch.uint8).view(dtype).reshape(shape)


def through(tensor: Tensor, chunk: int = compression.CHUNK_BYTES) -> Tensor:
    """There and back again."""
    flat = compression.words(tensor)
    out = compression.empty(len(flat), compression.word_size(tensor.dtype))
    compressor, decompressor = (
        zstandard.ZstdCompressor(level=compression.LEVEL),
        compression.decompressor(),
    )
    step = chunk // flat.itemsize
    for start in range(0, len(flat), step):
        stored = compression.compress(flat[start : start + step], compressor)
        assert len(stored) == compression.word_size(tensor.dtype)
        assert all(0 < len(plane) <= len(flat[start : start + step]) for plane in stored)
        compression.decompress(
            memoryview(b"".join(stored)),
            [*map(len, stored)],
            out[start : start + step],
            decompressor,
        )
    return compression.tensor(out, tensor.dtype, tensor.shape)


def assert_same(tensor: Tensor) -> None:
    back = through(tensor)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert bits(back) == bits(tensor)


def test_every_number_that_a_tensor_can_hold_has_a_dtype_here() -> None:
    ours = set(compression.DTYPES.values())
    for dtype in (v for v in vars(torch).values() if isinstance(v, torch.dtype)):
        made_by_hand = dtype in (
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.bool,
            *ours,
        )
        assert not made_by_hand or compression.DTYPES[str(dtype).removeprefix("torch.")] == dtype
    assert len(ours) == len(compression.DTYPES) == 17


@pytest.mark.parametrize("dtype", compression.DTYPES.values(), ids=compression.DTYPES)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_bits_of_any_shape_come_back(
    dtype: torch.dtype, shape: tuple[int, ...], seed: int
) -> None:
    assert_same(noise(dtype, shape, seed))


@pytest.mark.parametrize("dtype", compression.DTYPES.values(), ids=compression.DTYPES)
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_the_edges_of_chunks(dtype: torch.dtype, off: int) -> None:
    """One element fewer than fill a chunk, as many, one more; and the same about two chunks."""
    full = compression.CHUNK_BYTES // dtype.itemsize
    assert_same(noise(dtype, (full + off,)))
    assert_same(torch.zeros(2 * full + off, dtype=torch.uint8).to(dtype))


@given(words=st.lists(st.sampled_from(ODD) | st.integers(0, 2**32 - 1), max_size=40))
@example(words=ODD)
@settings(deadline=None)
def test_floats_that_arithmetic_would_change(words: list[int]) -> None:
    single = torch.from_numpy(np.array(words, np.uint32).view(np.uint8)).view(torch.float32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2):
        assert_same(single.view(dtype))
    if len(words) % 2 == 0:
        assert_same(single.view(torch.float64))
        assert_same(single.view(torch.complex64))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64, torch.uint8]
)
def test_however_a_tensor_lies_in_memory(dtype: torch.dtype) -> None:
    whole = noise(dtype, (6, 8))
    views = [
        whole.T,
        whole[::2],
        whole[:, 1::3],
        whole[3, 2],
        whole[2:2],
        whole.unfold(0, 2, 1),
        whole[0].expand(4, 8),
    ]
    for view in views:
        assert_same(view)


def test_views_that_conjugate_or_negate_only_once_they_are_read() -> None:
    whole = torch.complex(torch.arange(4.0), torch.arange(4.0) + 1)
    for lazy in (whole.conj(), whole.conj().imag):
        assert lazy.is_conj() or lazy.is_neg()
        back = through(lazy)
        assert torch.equal(back, lazy)


def test_words_share_a_plain_tensors_memory() -> None:
    tensor = torch.zeros(8)
    compression.words(tensor)[3] = 0x3F800000
    assert tensor.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    parameter = torch.nn.Parameter(torch.ones(2))
    assert compression.words(parameter).tolist() == [0x3F800000] * 2


def test_smooth_weights_get_smaller_and_noise_does_not_grow() -> None:
    compressor = zstandard.ZstdCompressor(level=compression.LEVEL)
    weights = torch.randn(1 << 16, generator=torch.Generator().manual_seed(1)) * 0.02
    assert (
        sum(map(len, compression.compress(compression.words(weights), compressor)))
        < 0.9 * weights.nbytes
    )
    assert (
        sum(
            map(
                len,
                compression.compress(compression.words(noise(torch.int32, (5000,))), compressor),
            )
        )
        == 20000
    )


# ── what is no chunk ────────────────────────────────────────────────────────────────────────────────────────────────

LENGTH = 1000  # of the planes below


def frame(raw: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(raw)  # type: ignore[arg-type]


def claiming(size: int, data: bytes = frame(bytes(LENGTH))) -> bytes:
    """A frame with another content size in its header, eight bytes long."""
    parameters = zstandard.get_frame_parameters(data)
    assert (parameters.has_checksum, parameters.dict_id) == (False, 0)
    body = data[zstandard.frame_header_size(data) :]
    return data[:4] + bytes([0b1110_0000]) + struct.pack("<Q", size) + body


def with_window(log: int) -> bytes:
    """A frame that wants a window of 2 ** log bytes, and claims the right content size."""
    data = frame(bytes(LENGTH))
    body = data[zstandard.frame_header_size(data) :]
    return data[:4] + bytes([0b0100_0000, (log - 10) << 3]) + struct.pack("<H", LENGTH - 256) + body


SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"
BAD: dict[str, bytes] = {
    "one byte": b"(",
    "no frame": b"no zstd frame at all",
    "only a frame's magic": zstandard.FRAME_HEADER,
    "a frame that ends early": frame(bytes(LENGTH))[:-1],
    "a byte after the frame": frame(bytes(LENGTH)) + b"\0",
    "a frame after the frame": frame(bytes(LENGTH)) + frame(bytes(LENGTH)),
    "an empty frame after the frame": frame(bytes(LENGTH)) + frame(b""),
    "two frames of half": frame(bytes(LENGTH // 2)) * 2,
    "a skippable frame": SKIPPABLE,
    "a skippable frame first": SKIPPABLE + frame(bytes(LENGTH)),
    "a skippable frame last": frame(bytes(LENGTH)) + SKIPPABLE,
    "a frame of too few": frame(bytes(LENGTH - 1)),
    "a frame of too many": frame(bytes(LENGTH + 1)),
    "a frame of nothing": frame(b""),
    "a frame of 16 MiB": frame(bytes(1 << 24)),
    "no content size": frame(bytes(LENGTH), write_content_size=False),
    "no content size, 16 MiB": frame(bytes(1 << 24), write_content_size=False),
    "claims a petabyte": claiming(1 << 50),
    "claims all there is": claiming(2**64 - 3),
    "claims less than it holds": claiming(LENGTH, frame(bytes(LENGTH + 9))),
    "claims much less than it holds": claiming(LENGTH, frame(bytes(1 << 24))),
    "claims more than it holds": claiming(LENGTH, frame(bytes(LENGTH - 9))),
    "a window of 2 GiB": with_window(31),
    "a window of a TiB": with_window(40),
    "another dictionary": frame(
        bytes(range(250)) * 4, dict_data=zstandard.ZstdCompressionDict(bytes(range(250)) * 9)
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", [0, 1])
def test_a_plane_that_is_none_is_refused(name: str, place: int) -> None:
    good = frame(bytes(LENGTH))
    stored = [good, good]
    stored[place] = BAD[name]
    assert len(BAD[name]) != LENGTH
    data, out, decompressor = (
        memoryview(b"".join(stored)),
        compression.empty(LENGTH, 2),
        compression.decompressor(),
    )
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a plane "):
            compression.decompress(data, [*map(len, stored)], out, decompressor)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # whatever the frame claims or holds
    finally:
        tracemalloc.stop()


def test_the_frames_that_were_tampered_with_would_have_been_good() -> None:
    """Else what was refused above might have been refused for how it was built."""
    for good in (claiming(LENGTH), with_window(10), frame(bytes(LENGTH), write_checksum=True)):
        out = compression.empty(LENGTH, 1)
        compression.decompress(memoryview(good), [len(good)], out, compression.decompressor())
        assert not out.any()


@given(data=st.binary(min_size=1, max_size=60), length=st.integers(1, 80))
@settings(max_examples=300, deadline=None)
def test_anything_else_is_refused_or_fills_its_place(data: bytes, length: int) -> None:
    out = compression.empty(length, 1)
    lengths: Sequence[int] = [len(data)]
    try:
        compression.decompress(memoryview(data), lengths, out, compression.decompressor())
    except ValueError:
        return
    assert len(data) == length
    assert out.tobytes() == data
