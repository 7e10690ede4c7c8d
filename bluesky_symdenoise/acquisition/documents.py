"""Documents as plain values: what a device hands out may change later, or be of a class that only its session knows."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]
Copy = Callable[[NDArray[Any]], NDArray[Any]]

#: Values within values that are followed; a document that holds itself has no end.
DEPTH = 64
#: Types that JSON has and that nobody can change.
_ATOMS = frozenset({str, int, float, bool, type(None)})
#: The only key of an object in JSON that stands for a value which JSON lacks.
_ARRAY, _BYTES, _COMPLEX, _UNREADABLE = "\0array", "\0bytes", "\0complex", "\0unreadable"


@dataclass(frozen=True)
class Unreadable:
    """Stands in a document for a value that cannot be read.

    Attributes
    ----------
    why
        What it is, in words.
    """

    why: str

    def __str__(self) -> str:
        return f"({self.why})"


def plain(doc: Mapping[str, Any], copy: Copy = np.array) -> Document:
    """Return a copy of a document that shares nothing with it and holds plain values only.

    Members of enumerations become their values, NumPy's scalars Python's, tuples and sets lists, paths, times and UUIDs
    text, dataclasses and models dicts. Arrays of numbers stay arrays; a value that is none of all these becomes
    `Unreadable`. Nothing is raised.

    Parameters
    ----------
    copy
        Gives a C-contiguous copy of an array of numbers.
    """
    return _mapping(doc, copy, 0)


def unreadable(value: Any, name: str = "") -> Iterator[tuple[str, Unreadable]]:
    """Yield the unreadable values within a plain value, each with its name: keys and indices with dots between."""
    if isinstance(value, Unreadable):
        yield name, value
    elif isinstance(value, dict | list):
        pairs: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, held in pairs:
            yield from unreadable(held, f"{name}.{key}" if name else str(key))


def refuse_unreadable(name: str, doc: Document) -> None:
    """Raise SymDenoiseError if a document holds a value that cannot be read; it names the first."""
    for key, value in unreadable(doc):
        raise refused_value(f"{name} document, key {key!r}", value)


def refused_value(what: str, value: Unreadable) -> SymDenoiseError:
    """That a value of a document cannot be read."""
    return SymDenoiseError(
        what,
        rule=f"it holds {value.why}, which is no number, text, list, dict or array",
        remedy="have the device or the plan give its plain value",
    )


def packed(name: str, doc: Document) -> tuple[bytes, list[NDArray[Any]]]:
    """Pack a plain document: JSON, and the arrays beside it, whose memory is not copied."""
    arrays: list[NDArray[Any]] = []
    return json.dumps([name, doc], default=partial(_standing_for, arrays), separators=(",", ":")).encode(), arrays


def unpacked(head: bytes, buffers: Sequence[Any]) -> tuple[str, Document]:
    """Return the document that was packed, its arrays on these buffers.

    Raises
    ------
    ValueError
        If it was not packed by `packed`. Nothing is unpickled.
    """
    name, doc = json.loads(head, object_hook=partial(_stood_for, buffers))
    return str(name), doc


def _plain(value: Any, copy: Copy, depth: int) -> Any:
    if type(value) in _ATOMS:
        return value
    if depth > DEPTH:
        return Unreadable(f"values nested deeper than {DEPTH} times")
    try:
        return _converted(value, copy, depth)
    except Exception as error:
        # Any object of any package may stand in a document, and the scan must not notice what it does here.
        return Unreadable(f"a {type(value).__name__} that raises {type(error).__name__} ({str(error)[:80]})")


def _converted(value: Any, copy: Copy, depth: int) -> Any:
    again = partial(_plain, copy=copy, depth=depth + 1)
    match value:
        case enum.Enum():
            return again(value.value)
        case np.ndarray():
            return _array(value, copy, again)
        case np.generic():
            item = value.item()
            return float(item) if isinstance(item, np.floating) else again(item)
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case complex() | bytes():
            return value
        case bytearray() | memoryview():
            return bytes(value)
        case Mapping():
            return _mapping(value, copy, depth + 1)
        case Set():
            return sorted(map(again, value), key=lambda each: (type(each).__name__, str(each)))
        case list() | tuple():
            # A copy suffices for rows of numbers, such as an image as lists of lists.
            return list(value) if _ATOMS.issuperset(map(type, value)) else [again(each) for each in value]
        case Sequence():
            return [again(each) for each in value]
        case os.PathLike():
            return again(os.fspath(value))
        case uuid.UUID():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal() | fractions.Fraction():
            return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: again(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return again(value.model_dump())
    if hasattr(value, "__array__"):
        return _array(np.asarray(value), copy, again)
    return Unreadable(f"a {type(value).__qualname__}")


def _mapping(value: Mapping[Any, Any], copy: Copy, depth: int) -> Document:
    return {
        key if type(key) is str else str(_plain(key, copy, depth)): _plain(held, copy, depth)
        for key, held in value.items()
    }


def _array(value: NDArray[Any], copy: Copy, again: Callable[[Any], Any]) -> Any:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return Unreadable("an array with masked values, for which a document has no form")
    held = np.asarray(value)
    if held.ndim == 0 or held.dtype.kind not in "biufc":
        return again(held.tolist())
    return copy(held)


def _standing_for(arrays: list[NDArray[Any]], value: Any) -> Any:
    match value:
        case np.ndarray():
            arrays.append(np.ascontiguousarray(value))
            return {_ARRAY: [len(arrays) - 1, value.dtype.str, list(value.shape)]}
        case bytes():
            return {_BYTES: base64.b64encode(value).decode()}
        case complex():
            return {_COMPLEX: [value.real, value.imag]}
        case Unreadable():
            return {_UNREADABLE: value.why}
    raise TypeError(f"a {type(value).__name__} in a document that is said to be plain")


def _stood_for(buffers: Sequence[Any], held: dict[str, Any]) -> Any:
    if len(held) != 1:
        return held
    ((key, value),) = held.items()
    if key == _ARRAY:
        number, dtype, shape = value
        count = math.prod(shape)
        return np.frombuffer(buffers[number], np.dtype(dtype), count=count).reshape(shape) if count else np.empty(shape)
    if key == _BYTES:
        return base64.b64decode(value)
    if key == _COMPLEX:
        return complex(*value)
    if key == _UNREADABLE:
        return Unreadable(str(value))
    return held
