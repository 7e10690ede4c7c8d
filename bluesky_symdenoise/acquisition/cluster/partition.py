"""Rows of a stream that a process of a Dask cluster denoises into a file, from which they are copied later."""

from __future__ import annotations

import hashlib
import logging
import pickle
import socket
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise import __version__
from bluesky_symdenoise.acquisition.derive.images import ImageDenoiser
from bluesky_symdenoise.acquisition.derive.streams import Event
from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.runs.databroker import stream_arrays
from bluesky_symdenoise.acquisition.runs.frames import StoredFrames
from bluesky_symdenoise.acquisition.runs.raw_files import RawFiles
from bluesky_symdenoise.catalog.store.parts import PartReader, PartWriter
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.derived.lending import Recent, Window, lent_by
from bluesky_symdenoise.derived.row import Row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import row_shape
from bluesky_symdenoise.files.source import Source

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Properties of a worker that, besides the recipe, decide the last bits of a result."""

    version: str
    environment: Document

    @classmethod
    def here(cls, model: DenoiserSettings) -> Machine:
        """Return the properties of this process, with the model loaded in it."""
        return cls(version=__version__, environment=model.load().environment())


class TiledStream:
    """Arrays of one stream on a Tiled server by name; can be sent to another process, which connects at its first read.

    Parameters
    ----------
    run
        The run; the server's access keys are passed on with it.
    """

    def __init__(self, run: BlueskyRun, name: str) -> None:
        # Do not keep the run: its client cannot be pickled, nor can the tokens of a client that logged in with a user
        # name.
        self._parent, self._uid, self._name = run.parent, run.start["uid"], name
        auth = run.context.http_client.auth
        self._tokens = {} if auth is None else dict(auth.tokens)

    def __getitem__(self, key: str) -> Any:
        if self._tokens:
            self._parent.context.http_client.auth.tokens.update(self._tokens)
        return stream_arrays(self._parent[self._uid], self._name)[key]


def checksum(image: NDArray[Any]) -> int:
    """Return the checksum of a raw image."""
    return zlib.crc32(np.ascontiguousarray(image).data)


class RawRows:
    """Raw images of one stream: read from their files if this process can see them, otherwise through Tiled.

    Parameters
    ----------
    files
        Files by data key; a key is missing if only the server can read its files.
    stored
        The same images on the server.
    last
        Checksum of the last image of each key, as the server has it: another computer may have another file of this
        name.
    refused
        Reason why the images are not read, by data key.
    """

    def __init__(
        self,
        files: Mapping[str, RawFiles],
        stored: StoredFrames,
        last: Mapping[str, int],
        refused: Mapping[str, SymDenoiseError],
    ) -> None:
        self._files, self._stored, self._last, self._refused = files, stored, last, refused
        self._sources: dict[str, Source | None] = {}

    def read(self, key: str, event: Event) -> NDArray[Any]:
        """Return the image of an event, in the shape of the data key.

        Raises
        ------
        SymDenoiseError
            If neither the files nor the server can give the image.
        """
        if key in self._refused:
            raise self._refused[key]
        source = self._source(key)
        if source is not None:
            try:
                return source.read(self._stored.row(event.seq_num, event.turn))
            except SymDenoiseError as error:
                log.info("read through Tiled: %s", error)
        return self._stored.read(key, event.seq_num, event.turn)

    def row(self, key: str, row: int) -> NDArray[Any]:
        """Return a row by its number.

        Raises
        ------
        SymDenoiseError
            If neither the files nor the server can give the image.
        """
        seq_num, turn = self._stored.place(row)
        return self.read(key, Event(seq_num=seq_num, turn=turn, time=None, images={}, columns={}))

    def _source(self, key: str) -> Source | None:
        if key not in self._sources:
            self._sources[key] = None
            try:
                source = self._files[key].source()
                if checksum(source.read(source.shape[0] - 1)) == self._last[key]:
                    self._sources[key] = source
            except (OSError, ValueError, KeyError) as error:
                log.info("%s is read through Tiled: its files cannot be read from here (%s)", key, error)
        return self._sources[key]


@dataclass(frozen=True)
class PartitionSetup:
    """Everything that many partitions of a stream share, in the state before the first of them.

    Attributes
    ----------
    machine
        Properties of the worker that the run was begun with.
    shapes
        (..., y, x) of one row of each image.
    window
        Rows that lend to each other; None if none do.
    """

    model: DenoiserSettings
    machine: Machine
    images: Mapping[str, ImageDenoiser]
    shapes: Mapping[str, Sequence[int]]
    raw: RawRows
    place: Place
    window: Window | None = None

    def packed(self) -> PackedSetup:
        """Return the setup ready to be sent to a worker. It includes the access keys of the Tiled client."""
        content = pickle.dumps(self)
        return PackedSetup(hashlib.sha256(content).hexdigest(), zlib.compress(content, 1))


@dataclass(frozen=True)
class PackedSetup:
    """A setup ready to be sent."""

    sha256: str
    content: bytes = field(repr=False, compare=False)

    def unpacked(self) -> PartitionSetup:
        """Return the setup, one object per process, so that files, connections and backgrounds are made once."""
        return _unpacked(self)


@lru_cache(maxsize=4)
def _unpacked(packed: PackedSetup) -> PartitionSetup:
    setup: PartitionSetup = pickle.loads(zlib.decompress(packed.content))
    return setup


@dataclass(frozen=True)
class Partition:
    """Rows of a stream that one task denoises.

    Attributes
    ----------
    path
        Path of its file, whose name is made from everything that decides its content.
    journal
        Path of the derived run's journal, which is removed when that run is complete.
    events, rows
        Events of its rows, and their numbers in the stream.
    """

    path: Path
    journal: Path
    events: tuple[Event, ...]
    rows: tuple[int, ...]


def denoise_partition(packed: PackedSetup, partition: Partition) -> None:
    """Denoise the rows of a partition into its file; do nothing if another worker has written it already.

    Raises
    ------
    SymDenoiseError
        If this worker differs from the one that the run began with, or the file cannot be written. A frame that cannot
        be denoised is no error: its reason is in the file.
    """
    setup = packed.unpacked()
    _check_machine(setup)
    if _is_done(partition.path):
        return
    try:
        setup.place.check_space(partition.path.parent)
        with PartWriter(partition.path, setup.shapes) as writer:
            # The decisions of the first rows are made again by the worker that repeats these rows.
            images = {key: each if each.settled else each.as_now() for key, each in setup.images.items()}
            borrow = None if setup.window is None else setup.window.borrow
            # The rows of a partition and its halo are read once, where they fit into memory.
            read = {key: Recent(partial(_image, setup, key), borrow) for key in images}
            for event, row in zip(partition.events, partition.rows, strict=True):
                writer.append({key: _outcome(setup, read[key], each, event, row) for key, each in images.items()})
        if not partition.journal.exists():
            # This task was cancelled while it ran, and the run was completed without it.
            partition.path.unlink(missing_ok=True)
    except OSError as error:
        raise SymDenoiseError(
            f"folder {partition.path.parent}",
            rule=f"the worker on {socket.gethostname()} cannot write denoised frames there ({error})",
            remedy="pass directory=..., a folder that this computer, all workers and the server see",
        ) from error


def _is_done(path: Path) -> bool:
    try:
        with PartReader(path) as part:
            return not part.failed
    except (OSError, KeyError, ValueError) as error:
        log.debug("%s is written anew: %s", path, error)
        return False


def _image(setup: PartitionSetup, key: str, row: int) -> NDArray[Any]:
    """Return a row in the shape that all have."""
    image = setup.raw.row(key, row)
    shape = tuple(setup.shapes[key])
    if row_shape(image.shape, shape) != shape:
        raise SymDenoiseError(
            f"row {row} of shape {image.shape}", rule=f"the rows have {shape}", remedy="check the raw run's files"
        )
    return image.reshape(shape)


def _outcome(setup: PartitionSetup, read: Recent, images: ImageDenoiser, event: Event, row: int) -> Row | Exception:
    try:
        lenders = () if setup.window is None else setup.window.lenders(row)
        image = read(row)
        lent = lent_by(lenders, read.readable, shape=image.shape)
        return images.row(image, event.columns, event.time, lent=lent)
    except Exception as error:
        # As in `DerivedRows`, one bad frame must not make the others fail.
        return error


def _check_machine(setup: PartitionSetup) -> None:
    here = Machine.here(setup.model)
    if here != setup.machine:
        raise SymDenoiseError(
            f"worker on {socket.gethostname()} with {here}",
            rule=f"the run was begun on one with {setup.machine}, and its frames would differ in their last bits",
            remedy="use workers of one kind: replay inside `with dask.annotate(workers=[...])`",
        )
