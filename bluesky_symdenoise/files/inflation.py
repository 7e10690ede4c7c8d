"""Decompressed size of stored bytes, found before anything of that size is allocated."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from bluesky_symdenoise.errors import SymDenoiseError

#: Filters that do not change the size: shuffle, Fletcher32.
_HARMLESS = frozenset({2, 3})
_DEFLATE, _SZIP, _LZF, _BLOSC, _LZ4, _BITSHUFFLE, _ZSTD = 1, 4, 32000, 32001, 32004, 32008, 32015
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: Most bytes into which deflate can expand one byte.
_DEFLATE_RATIO = 1032
#: Bytes that deflate may produce without having been counted first.
_SMALL = 2**28


def checked_chunk(
    raw: Callable[[], bytes], stored: int, declared: int, filters: Sequence[tuple[int, tuple[int, ...]]]
) -> None:
    """Refuse a compressed HDF5 chunk whose decompressed size is not what the dataset states.

    Parameters
    ----------
    raw
        Function that reads the chunk as it is stored.
    stored, declared
        Bytes on disk, and bytes of the chunk's shape and dtype.
    filters
        HDF5 filter numbers with their options, in the order in which they were applied.

    Raises
    ------
    SymDenoiseError
        If it becomes larger, or if its size cannot be determined.
    """
    packing = [(code, options) for code, options in filters if code not in _HARMLESS]
    if not packing:
        return
    if len(packing) > 1 or packing[0][0] not in _SIZES:
        raise SymDenoiseError(
            f"HDF5 filters {', '.join(str(code) for code, _ in filters)}",
            rule="the decompressed size of their chunks cannot be known beforehand",
            remedy="replay the run, or store the frames with one of deflate, lzf, lz4, szip, blosc, zstd, bitshuffle",
        )
    code, options = packing[0]
    if code == _DEFLATE and stored * _DEFLATE_RATIO <= _SMALL:
        return
    if code == _BITSHUFFLE and (len(options) < 5 or options[4] == 0):
        return
    size = stored if code == _LZF else _SIZES[code](raw(), declared)
    if size > declared:
        raise _bomb(size, declared)


def checked_deflate(raw: bytes, declared: int) -> None:
    """Refuse a zlib stream that becomes larger than declared.

    Raises
    ------
    SymDenoiseError
        If it does.
    """
    if len(raw) * _DEFLATE_RATIO > declared and _inflated(raw, declared) > declared:
        raise _bomb(declared + 1, declared)


def checked_zstd(head: bytes, declared: int) -> None:
    """Refuse a Zstandard frame that becomes larger than declared, or does not say how large.

    Raises
    ------
    SymDenoiseError
        If it does.
    """
    size = _zstd_size(head, declared)
    if size > declared:
        raise _bomb(size, declared)


def _bomb(size: int, declared: int) -> SymDenoiseError:
    return SymDenoiseError(
        f"a compressed block of {size} bytes or more",
        rule=f"its array says {declared}",
        remedy="write the file again: it is damaged, or made to exhaust memory",
    )


def _inflated(raw: bytes, limit: int) -> int:
    """Return the decompressed size of a zlib stream, counted only to just above the limit."""
    stream, size, rest = zlib.decompressobj(), 0, raw
    while rest and size <= limit and not stream.eof:
        try:
            size += len(stream.decompress(rest, 2**20))
        except zlib.error:
            return size  # The data are damaged: the reader will report it, at no more than this size.
        rest = stream.unconsumed_tail
    return size


def _zstd_size(raw: bytes, declared: int) -> int:
    """Return the content size in a frame's header (RFC 8878, 3.1.1.1); one without it counts as too large."""
    if len(raw) < 6 or raw[:4] != _ZSTD_MAGIC:
        return declared + 1
    flags = raw[4]
    single, width = flags >> 5 & 1, (0, 2, 4, 8)[flags >> 6]
    if not width:
        width = single
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not width or len(raw) < start + width:
        return declared + 1
    return int.from_bytes(raw[start : start + width], "little") + (256 if width == 2 else 0)


_SIZES: dict[int, Callable[[bytes, int], int]] = {
    _DEFLATE: _inflated,
    _SZIP: lambda raw, _: int.from_bytes(raw[:4], "little"),
    _LZF: lambda raw, _: len(raw),
    _BLOSC: lambda raw, _: int.from_bytes(raw[4:8], "little"),
    _LZ4: lambda raw, _: int.from_bytes(raw[:8], "big"),
    _BITSHUFFLE: lambda raw, _: int.from_bytes(raw[:8], "big"),
    _ZSTD: _zstd_size,
}
