"""Documents as plain values: a device may change its values later, or use a class that only its session knows."""

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

#: Deepest nesting of values that is followed; a document that contains itself has no end.
DEPTH = 64
#: Most digits of integers that Python converts, and the alignment of arrays in bytes.
DIGITS, _ALIGNED = 4000, 64
#: Immutable types that exist in JSON.
_ATOMS = frozenset({str, int, float, bool, type(None)})
_NUMBERS = frozenset({float, bool, type(None)})
#: Single key of the JSON object that stands for a value without a JSON type.
_ARRAY, _BYTES, _COMPLEX, _UNREADABLE = "\0array", "\0bytes", "\0complex", "\0unreadable"


@dataclass(frozen=True)
class Unreadable:
    """Placeholder in a document for a value that cannot be read.

    Attributes
    ----------
    why
        Description of the value.
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
        Function that returns a C-contiguous copy of an array of numbers.
    """
    return _mapping(doc, copy, (id(doc),))


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
    """Return the error for a value of a document that cannot be read."""
    return SymDenoiseError(
        what,
        rule=f"it holds {value.why}, which is not a number, text, list, dict or array",
        remedy="make the device or the plan give its plain value",
    )


@dataclass(frozen=True)
class PackedDocument:
    """A plain document ready to be sent: JSON, and the arrays that it refers to by their place in a body.

    Attributes
    ----------
    head
        The JSON.
    arrays
        The arrays; their memory is not copied.
    """

    head: bytes
    arrays: tuple[NDArray[Any], ...]

    @property
    def parts(self) -> Iterator[memoryview]:
        """Body, piece by piece."""
        for array in self.arrays:
            yield array.reshape(-1).view(np.uint8).data
            yield memoryview(bytes(-array.nbytes % _ALIGNED))

    @property
    def size(self) -> int:
        """Size of the body in bytes."""
        return sum(map(_room, self.arrays))


def packed(name: str, doc: Document) -> PackedDocument:
    """Pack a plain document."""
    body = _Body()
    head = json.dumps([name, doc], default=partial(_standing_for, body), separators=(",", ":")).encode()
    return PackedDocument(head, tuple(body.arrays))


def unpacked(head: bytes, body: bytes) -> tuple[str, Document]:
    """Return the document that was packed; its arrays use the memory of the body.

    Raises
    ------
    ValueError
        If the data were not made by `packed`. Nothing is unpickled.
    """
    name, doc = json.loads(head, object_hook=partial(_decoded, body))
    return str(name), doc


def _plain(value: Any, copy: Copy, within: tuple[int, ...]) -> Any:
    """Return the plain value; ``within`` holds the ids of the enclosing values, which must not occur in it again."""
    if type(value) in _ATOMS:
        return _atom(value)
    if len(within) > DEPTH or id(value) in within:
        return Unreadable(f"values nested deeper than {DEPTH} times")
    try:
        return _converted(value, copy, (*within, id(value)))
    except Exception as error:
        # A document may hold objects of any package; an error of theirs must not reach the scan.
        return Unreadable(f"a {type(value).__name__} that raises {type(error).__name__} ({str(error)[:80]})")


def _atom(value: Any) -> Any:
    """Return a value of a type that JSON has, if others can read it."""
    if type(value) is str and not value.isascii():
        # Databases refuse lone surrogates, as from a file name that is not UTF-8.
        return value.encode(errors="replace").decode()
    if type(value) is int and value.bit_length() > DIGITS * 3:
        return Unreadable(f"a whole number of more than {DIGITS} digits")
    return value


def _converted(value: Any, copy: Copy, within: tuple[int, ...]) -> Any:
    again = partial(_plain, copy=copy, within=within)
    match value:
        case enum.Enum():
            return again(value.value)
        case np.ndarray():
            return _array(value, copy, again)
        case np.generic():
            item = value.item()
            return float(item) if isinstance(item, np.floating) else again(item)
        case str():
            return _atom(str.__str__(value))
        case int():
            return _atom(int(value))
        case float():
            return float(value)
        case complex() | bytes():
            return value
        case bytearray() | memoryview():
            return bytes(value)
        case Mapping():
            return _mapping(value, copy, within)
        case Set():
            return sorted(map(again, value), key=lambda each: (type(each).__name__, str(each)))
        case list() | tuple():
            # For nested lists of numbers, such as an image, a copy suffices.
            return list(value) if _is_row(value) else [again(each) for each in value]
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


def _is_row(values: Sequence[Any]) -> bool:
    """Return whether these are numbers that need not be checked one by one."""
    types = set(map(type, values))
    if types == {int}:
        return max(max(values).bit_length(), min(values).bit_length()) <= DIGITS * 3
    return types <= _NUMBERS


def _mapping(value: Mapping[Any, Any], copy: Copy, within: tuple[int, ...]) -> Document:
    return {str(_plain(key, copy, within)): _plain(held, copy, within) for key, held in value.items()}


def _array(value: NDArray[Any], copy: Copy, again: Callable[[Any], Any]) -> Any:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        return Unreadable("an array with masked values, for which a document has no form")
    held = np.asarray(value)
    if held.ndim == 0 or held.dtype.kind not in "biufc":
        return again(held.tolist())
    return copy(held)


class _Body:
    """Arrays one after the other, and their size so far."""

    def __init__(self) -> None:
        self.arrays: list[NDArray[Any]] = []
        self.size = 0

    def place(self, array: NDArray[Any]) -> int:
        """Add an array, and return where it begins."""
        begin = self.size
        if array.size:
            self.arrays.append(np.ascontiguousarray(array))
            self.size += _room(array)
        return begin


def _room(array: NDArray[Any]) -> int:
    return array.nbytes + -array.nbytes % _ALIGNED


def _standing_for(body: _Body, value: Any) -> Any:
    match value:
        case np.ndarray():
            return {_ARRAY: [body.place(value), value.dtype.str, list(value.shape)]}
        case bytes():
            return {_BYTES: base64.b64encode(value).decode()}
        case complex():
            return {_COMPLEX: [value.real, value.imag]}
        case Unreadable():
            return {_UNREADABLE: value.why}
    raise TypeError(f"a {type(value).__name__} in a document that is said to be plain")


def _decoded(body: bytes, held: dict[str, Any]) -> Any:
    if len(held) != 1:
        return held
    ((key, value),) = held.items()
    if key == _ARRAY:
        place, dtype, shape = value
        count = math.prod(shape)
        if count == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(body, np.dtype(dtype), count=count, offset=place).reshape(shape)
    if key == _BYTES:
        return base64.b64decode(value)
    if key == _COMPLEX:
        return complex(*value)
    if key == _UNREADABLE:
        return Unreadable(str(value))
    return held
