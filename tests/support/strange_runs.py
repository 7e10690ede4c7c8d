"""Strange but valid Bluesky runs, as users make them, and which image each of their rows was meant to be.

A `Run` is a plan that hypothesis draws and shrinks. `made` writes its files and composes its documents, by event-model;
the `StrangeRun` knows which image each row was meant to show, and `judged` compares.
"""

from __future__ import annotations

import datetime
import enum
import itertools
import socket
import tempfile
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import h5py
import numpy as np
import tifffile
import xarray as xr
from event_model import compose_run, pack_event_page
from hypothesis import strategies as st
from numpy.typing import NDArray

Document = dict[str, Any]
Image = NDArray[Any]

STREAMED, LEGACY = ("hdf5", "tiff"), ("AD_HDF5", "AD_TIFF", "NPY_SEQ")
#: Shapes of data keys: the first two say what is, the others do not.
STATED: dict[str, Callable[[int, int, int], list[int | None]]] = {
    "(n, y, x)": lambda n, y, x: [n, y, x],
    "(y, x)": lambda n, y, x: [y, x] if n == 1 else [n, y, x],
    "(n, x, y)": lambda n, y, x: [n, x, y],
    "(x, y)": lambda n, y, x: [x, y],
    "(x, y, 0)": lambda n, y, x: [x, y, 0],
    "(None, None)": lambda n, y, x: [None, None],
    "(None, y, x)": lambda n, y, x: [None, y, x],
    "larger than its region of interest": lambda n, y, x: [n, y + 4, x + 3],
    "smaller than the image": lambda n, y, x: [n, y - 2, x - 3],
    "more frames": lambda n, y, x: [n + 2, y, x],
}


class Mode(enum.StrEnum):
    """As ophyd-async has them, in a module that a worker does not know."""

    STEP = "step"


class Gain(enum.IntEnum):
    """The same of a number."""

    HIGH = 2


class Labelled(np.ndarray):
    """An array of a class of its own."""


#: Plain values in the clothes that devices and plans give them; made anew for each use.
ODD: dict[str, Callable[[], Any]] = {
    "StrEnum": lambda: Mode.STEP,
    "IntEnum": lambda: Gain.HIGH,
    "numpy scalar": lambda: np.float32(1.5),
    "numpy bool": lambda: np.True_,
    "numpy array": lambda: np.arange(3),
    "tuple": lambda: (1, (2, Mode.STEP)),
    "set": lambda: {1, 2},
    "Path": lambda: Path("a") / "b",
    "datetime": lambda: datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
    "UUID": lambda: uuid.UUID(int=7),
    "NaN": lambda: float("nan"),
    "large int": lambda: 2**70,
    "bytes": lambda: b"\xff\x00",
}
#: Values that no document should hold; they are in event data of other keys only.
NOT_PLAIN: dict[str, Callable[[ExitStack], Any]] = {
    "object": lambda _: object(),
    "function": lambda _: lambda: None,
    "lock": lambda _: threading.Lock(),
    "generator": lambda _: (each for each in ()),
    "socket": lambda end: end.enter_context(socket.socket()),
    "file": lambda end: end.enter_context(tempfile.TemporaryFile()),  # noqa: SIM115
    "keys that are no text": lambda _: {1: "a", (2, 3): "b"},
    "array of objects": lambda _: np.array([object(), None]),
}
HANDED = (
    *("array", "buffer", "view of a buffer", "list", "Fortran order", "strided", "turned round", "read-only"),
    *("tuples", "list of rows", "subclass", "DataArray", "filled", "masked", "objects"),
)
KEYS = ("det", "cam", "det image", "dét", "{key}", "det'x\"", "a%20b", "det\\x", "XF:1{Cam}:image", "x" * 90)
NAMES = ("primary", "darks", "dark field", "{stream}", "ström", "a/b", "s" * 300)


class _Brief:
    """A value that shows only what is strange about it."""

    def __repr__(self) -> str:
        strange = [
            f"{each.name}={value!r}" for each in fields(self) if (value := getattr(self, each.name)) != each.default
        ]
        return f"{type(self).__name__}({', '.join(strange)})"


@dataclass(frozen=True, repr=False)
class Camera(_Brief):
    """One detector: what its images are, what its data key says of them, and the way that they go."""

    key: str = "det"
    way: str = "hdf5"
    shape: tuple[int, int] = (12, 16)
    frames: int = 1
    colour: bool = False
    dtype: str = "<u2"
    stated: str = "(n, y, x)"
    stated_dtype: str = "same"
    #: In events: as what.
    handed: str = "array"
    #: In files: rows (row, n, y, x) or frames end to end; rows before the first and after the last announced one; after
    #: how many rows comes the next file, 0 for never, and how its rows are counted; how many rows a document announces,
    #: and when.
    end_to_end: bool = False
    warm_up: int = 0
    surplus: int = 0
    new_file_after: int = 0
    counted: str = "from 0"
    together: int = 1
    announced: str = "before its event"
    quoted: bool = False

    @property
    def fits(self) -> bool:
        """Whether the data key says what is."""
        return self.stated in ("(n, y, x)", "(y, x)") and self.stated_dtype != "other"

    @property
    def early(self) -> int:
        """Rows before the first that is announced: none where a file goes on, or its first row would be unknown."""
        apart = self.way == "hdf5" or self.counted != "on, in one folder"
        return 0 if self.way in STREAMED and self.counted != "from 0" and apart else self.warm_up

    @property
    def laid_end_to_end(self) -> bool:
        """Whether frames are: only where the data key says how many make a row, for nothing else does."""
        silent = ("(x, y)", "(x, y, 0)", "(None, None)", "(None, y, x)", "more frames")
        return self.end_to_end and not ((self.frames > 1 or self.stated == "more frames") and self.stated in silent)

    @property
    def may_be_left_out(self) -> bool:
        """Whether the run may have no such images, if that is said."""
        return not self.fits or self.unusable or self.doubtful

    def excuse(self, *, alone: bool) -> str:
        """Why rows may be NaN; empty where all is said that is needed.

        Parameters
        ----------
        alone
            Whether its key has one file only in the whole run.
        """
        if not self.fits:
            return "the data key says otherwise"
        if self.unusable or self.doubtful:
            return "these are no counts"
        if self.way in STREAMED and not alone and (self.early or self.counted != "from 0"):
            return "documents do not say how the next file counts"
        if self.way in STREAMED and self.quoted:
            return "Tiled would look for the file elsewhere"
        return ""

    @property
    def unusable(self) -> bool:
        """Whether no row may hold anything but NaN."""
        return self.colour or (self.way == "inline" and self.handed == "masked")

    @property
    def doubtful(self) -> bool:
        """Whether these are counts is for the denoiser to say."""
        return self.dtype == "|b1" or (self.way == "inline" and self.handed == "objects")


@dataclass(frozen=True, repr=False)
class Stream(_Brief):
    """One stream: its points are numbered from 1; after a pause some may be taken again."""

    name: str = "primary"
    cameras: tuple[Camera, ...] = (Camera(),)
    points: int = 2
    #: After this number, so many are taken again.
    rewind: tuple[int, int] = (0, 0)
    flown: bool = False
    #: Aborted after the last frame was announced and before its event.
    cut: bool = False
    page: int = 1
    #: Before this point comes a second descriptor.
    configured_again: int = 0
    odd: tuple[str, ...] = ()

    @property
    def flies(self) -> bool:
        """Whether its frames come without events: only where nothing needs one."""
        return self.flown and all(camera.way in STREAMED for camera in self.cameras) and not self.odd

    @property
    def events_a_page(self) -> int:
        """One where nothing needs an event: frames that are announced one by one before a page look like a fly scan."""
        return self.page if self.odd or not all(camera.way in STREAMED for camera in self.cameras) else 1

    @property
    def cuts(self) -> bool:
        """Whether it is aborted: only where that leaves a row that nobody may leave out or count with another."""
        sure = not any(camera.may_be_left_out for camera in self.cameras)
        return self.cut and sure and self.numbers.count(self.points) == 1

    @property
    def numbers(self) -> list[int]:
        """Of its points, in order."""
        after, back = self.rewind
        if self.flies or not back or not 0 < after <= self.points:
            return list(range(1, self.points + 1))
        return [*range(1, after + 1), *range(max(1, after - back + 1), self.points + 1)]


@dataclass(frozen=True, repr=False)
class Run(_Brief):
    """A plan of a run."""

    streams: tuple[Stream, ...] = (Stream(),)
    #: Whether the first camera of the first two streams is one device, with one file for both.
    shared: bool = False
    mixed: str = "in turn"
    resources_first: bool = False
    metadata: tuple[str, ...] = ()
    configuration: tuple[str, ...] = ()
    #: Whether whoever hands a document over changes it afterwards.
    scribbled: bool = False
    #: Whether another run of the same callback goes on meanwhile.
    beside: bool = False


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """The usual value in half of the draws, and when an example is shrunk."""
    return st.sampled_from((*[usual] * len(others), *others))


def some(names: Iterable[str]) -> st.SearchStrategy[tuple[str, ...]]:
    """None of the names in most draws, else one or two."""
    chosen = st.lists(st.sampled_from(list(names)), min_size=1, max_size=2, unique=True).map(tuple)
    return st.one_of(st.just(()), st.just(()), chosen)


def several(each: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """One or more in most draws, none in few."""
    more = st.lists(each, min_size=1, max_size=most).map(tuple)
    return st.one_of(st.tuples(each), more, more, more, st.lists(each, max_size=1).map(tuple))


def cameras(*, sure: bool = False) -> st.SearchStrategy[Camera]:
    """Detectors; if ``sure``, such of whose files nothing is in doubt, so that no frame is waited for in vain."""
    said = ("(n, y, x)", "(y, x)")
    return st.builds(
        Camera,
        key=mostly("det", *["cam"] * 8, *KEYS),
        way=st.sampled_from(("hdf5", "inline", "tiff", *LEGACY)),
        shape=st.sampled_from(((12, 16), (24, 32), (19, 14))),
        frames=mostly(1, 2, 3),
        colour=mostly(False, False, False, True),
        dtype=mostly("<u2", "|u1", "<u4", "<i4", "<i2", ">u2", "<f4", "<f8", ">f4", "<i8", "<u8", "|b1"),
        stated=st.sampled_from(said) if sure else mostly(said[0], *STATED),
        stated_dtype=mostly("same", "missing") if sure else mostly("same", "other", "missing"),
        handed=st.sampled_from(HANDED),
        end_to_end=st.booleans(),
        warm_up=mostly(0, 1, 2),
        surplus=mostly(0, 1, 4),
        new_file_after=st.just(0) if sure else mostly(0, 1, 2),
        counted=mostly("from 0", "on", "on, in one folder"),
        together=mostly(1, 2, 3),
        announced=st.sampled_from(("before its event", "after its event", "after all events")),
        quoted=st.just(False) if sure else mostly(False, False, False, True),
    )


def streams(*, sure: bool = False) -> st.SearchStrategy[Stream]:
    """Streams with one or two detectors, seldom none."""
    return st.builds(
        Stream,
        name=mostly("primary", *["primary"] * 8, *NAMES[1:]),
        cameras=several(cameras(sure=sure), 2),
        points=st.sampled_from((2, 1, 3, 4, 2, 3, 4, 0)),
        rewind=mostly((0, 0), (1, 1), (2, 1), (2, 2), (3, 2)),
        flown=mostly(False, False, True),
        cut=mostly(False, False, True),
        page=mostly(1, 2, 3),
        configured_again=mostly(0, 1, 2, 3),
        odd=some([*ODD, *NOT_PLAIN]),
    )


def runs(*, sure: bool = False) -> st.SearchStrategy[Run]:
    """Strange runs; see `cameras`."""
    return st.builds(
        Run,
        streams=several(streams(sure=sure), 3),
        shared=st.booleans(),
        mixed=st.sampled_from(("in turn", "one each", "in sets")),
        resources_first=st.booleans(),
        metadata=some(ODD),
        configuration=some(ODD),
        scribbled=st.booleans(),
        beside=st.booleans(),
    ).map(lambda run: run)  # Else hypothesis shows what is usual too.


@dataclass(frozen=True)
class Point:
    """One point of a scan; ``place`` counts those of all streams in the order of the run."""

    place: int
    stream: int
    number: int
    event: bool
    descriptor: int


@dataclass(frozen=True)
class Meant:
    """What a row of the derived run should be: images by data key, as far as it has them."""

    number: int
    time: float | None
    images: Mapping[str, Image]


@dataclass(frozen=True)
class StrangeRun:
    """The documents of a run, to be handed over once, and what was meant by them.

    Attributes
    ----------
    meant
        Rows by stream.
    cameras, excuses
        By stream and data key: what took the images, and why rows may be NaN.
    """

    uid: str
    documents: Iterator[tuple[str, Document]]
    meant: Mapping[str, Sequence[Meant]]
    cameras: Mapping[tuple[str, str], Camera]
    excuses: Mapping[tuple[str, str], str]

    @property
    def odd_names(self) -> list[str]:
        """Names that a file system or Tiled may not take."""
        return [name for pair in self.cameras for name in pair if len(name) > 50 or set(name) & set("/%\\'\"{}")]


@dataclass(frozen=True)
class _Step:
    name: str
    doc: Document
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None


def frame(number: int, camera: Camera) -> Image:
    """A frame that is no other one, nor itself turned or scrambled: few counts, a bright corner, its number."""
    counts = 1 + np.arange(camera.shape[0] * camera.shape[1]).reshape(camera.shape) * 7 % 11 % 3
    counts[1:3, 1:4] += 30 if np.dtype(camera.dtype).itemsize == 1 else 330
    counts[-2, 1] += number % 200
    counts[-2, 5] += number // 200
    if camera.dtype == "|b1":
        counts = (counts + number) % 2
    if camera.colour:
        counts = np.stack([counts, counts // 2, counts // 3], axis=-1)
    return counts.astype(camera.dtype)


@contextmanager
def made(plan: Run, folder: Path) -> Iterator[StrangeRun]:
    """Write the files of a run into a folder and compose its documents."""
    with ExitStack() as end:
        yield _Maker(plan, folder, end).run()


class _Maker:
    """Writes the files of one run and composes its documents, each in its place of the order."""

    def __init__(self, plan: Run, folder: Path, end: ExitStack) -> None:
        self.plan, self.folder, self.end = plan, folder, end
        self.streams, self.shared = _distinct(plan)
        self.numbers = itertools.count(1)
        metadata = {f"odd {name}": ODD[name]() for name in plan.metadata}
        self.composed = compose_run(metadata=metadata | {"sample": {"name": "collagen", "steps": [1, 2]}})
        self.time = self.composed.start_doc["time"]
        self.descriptors = [[self._descriptor(stream) for _ in range(2)] for stream in self.streams]
        self.points = _points(self.streams, plan.mixed)
        #: Documents before all points, before and after each, and after all.
        self.early: list[_Step] = []
        self.before, self.after = defaultdict[int, list[_Step]](list), defaultdict[int, list[_Step]](list)
        self.late: list[_Step] = []
        #: How many there are of each data key.
        self.resources = Counter[str]()
        #: Of each point, by data key: the image that is meant, what stands in the event, and whether that is an image.
        self.images = defaultdict[int, dict[str, Image]](dict)
        self.values = defaultdict[int, dict[str, Any]](dict)
        self.filled = defaultdict[int, dict[str, bool]](dict)
        #: Buffers of each point with what is in them when its event is handed over.
        self.buffers = defaultdict[int, list[tuple[Image, Image]]](list)

    def run(self) -> StrangeRun:
        for number, stream in enumerate(self.streams):
            for camera in stream.cameras:
                users = (0, 1) if camera is self.shared else (number,)
                if number == users[0]:
                    self._record(camera, [point for point in self.points if point.stream in users])
        opening = [_Step("descriptor", pair[0].descriptor_doc) for pair in self.descriptors]
        early = [*self.early, *opening] if self.plan.resources_first else [*opening, *self.early]
        cut = any(stream.cuts for stream in self.streams)
        stop = self.composed.compose_stop(exit_status="abort" if cut else "success")
        steps = [_Step("start", self.composed.start_doc), *early, *self._events(), *self.late, _Step("stop", stop)]
        return StrangeRun(
            uid=self.composed.start_doc["uid"],
            documents=self._handed(steps),
            meant={stream.name: self._meant(number, stream) for number, stream in enumerate(self.streams)},
            cameras={(stream.name, camera.key): camera for stream in self.streams for camera in stream.cameras},
            excuses={
                (stream.name, camera.key): camera.excuse(alone=self.resources[camera.key] < 2)
                for stream in self.streams
                for camera in stream.cameras
            },
        )

    def _descriptor(self, stream: Stream) -> Any:
        keys: Document = {}
        for camera in stream.cameras:
            shape = STATED[camera.stated](camera.frames, *camera.shape) + [3] * camera.colour
            keys[camera.key] = {"source": "test", "dtype": "array", "shape": shape}
            if camera.way != "inline" or camera.handed == "filled":
                keys[camera.key]["external"] = "STREAM:" if camera.way in STREAMED else "FILESTORE:"
            if camera.stated_dtype != "missing":
                other = "<f8" if camera.dtype == "<u2" else "<u2"
                keys[camera.key]["dtype_numpy"] = other if camera.stated_dtype == "other" else camera.dtype
        keys |= {f"odd {name}": {"source": "test", "dtype": "string", "shape": []} for name in stream.odd}
        said = {name: ODD[name]() for name in self.plan.configuration}
        configuration = {
            "data": said,
            "timestamps": dict.fromkeys(said, 0.0),
            "data_keys": {name: {"source": "test", "dtype": "string", "shape": []} for name in said},
        }
        return self.composed.compose_descriptor(
            name=stream.name, data_keys=keys, configuration={"device": configuration} if said else {}, time=self.time
        )

    def _meant(self, number: int, stream: Stream) -> list[Meant]:
        """Rows with events in their order, then those of frames without."""
        rows = []
        for point in sorted((each for each in self.points if each.stream == number), key=lambda each: not each.event):
            images = {
                camera.key: self.images[point.place][camera.key]
                for camera in stream.cameras
                if point.event or camera.way in STREAMED
            }
            if point.event or images:
                time = self._time(point) if point.event else None
                rows.append(Meant(number=point.number, time=time, images=images))
        return rows

    def _time(self, point: Point) -> float:
        return float(self.time + 1 + point.place)

    def _events(self) -> Iterator[_Step]:
        """What comes before the events of a page, the page, and what comes after."""
        described = {pair[0].descriptor_doc["uid"] for pair in self.descriptors}
        for page in self._pages():
            descriptor = self.descriptors[page[0].stream][page[0].descriptor].descriptor_doc
            if descriptor["uid"] not in described:
                described.add(descriptor["uid"])
                yield _Step("descriptor", descriptor)
            for point in page:
                yield from self.before[point.place]
            if page[0].event:
                events = [self._event(point) for point in page]
                if self.streams[page[0].stream].events_a_page == 1:
                    filled = self.buffers[page[0].place]
                    yield _Step("event", events[0], partial(_fill, filled), partial(_fill_otherwise, filled))
                else:
                    yield _Step("event_page", pack_event_page(*events))
            for point in page:
                yield from self.after[point.place]

    def _pages(self) -> Iterator[list[Point]]:
        """Points whose events make one page: of one descriptor, and no number twice."""
        page: list[Point] = []
        for point in self.points:
            if page and not (
                point.stream == page[0].stream
                and point.descriptor == page[0].descriptor
                and point.event == page[0].event
                and point.number > page[-1].number
                and len(page) < self.streams[point.stream].events_a_page
            ):
                yield page
                page = []
            page.append(point)
        if page:
            yield page

    def _event(self, point: Point) -> Document:
        stream = self.streams[point.stream]
        data = dict(self.values[point.place])
        for name in stream.odd:
            data[f"odd {name}"] = ODD[name]() if name in ODD else NOT_PLAIN[name](self.end)
        event: Document = self.descriptors[point.stream][point.descriptor].compose_event(
            data=data,
            timestamps=dict.fromkeys(data, self._time(point)),
            filled=self.filled[point.place],
            seq_num=point.number,
            time=self._time(point),
        )
        return event

    def _handed(self, steps: Iterable[_Step]) -> Iterator[tuple[str, Document]]:
        for step in steps:
            step.before()
            yield step.name, step.doc
            step.after()
            if self.plan.scribbled:
                _scribble(step.doc)

    def _record(self, camera: Camera, points: Sequence[Point]) -> None:
        """Take an image at each point, and hand it over in the camera's way."""
        for point in points:
            self.images[point.place][camera.key] = self._image(camera)
        if camera.way == "inline":
            self._hand_over(camera, points)
        elif camera.way in STREAMED:
            self._stream(camera, points)
        else:
            self._store(camera, points)

    def _image(self, camera: Camera) -> Image:
        return np.stack([frame(next(self.numbers), camera) for _ in range(camera.frames)])

    def _hand_over(self, camera: Camera, points: Sequence[Point]) -> None:
        buffer = np.stack([self._image(camera)] * 2)
        for point in points:
            image, place = self.images[point.place][camera.key], buffer[0]
            if camera.end_to_end and camera.frames == 1:
                image, place = image[0], place[0]
            if "buffer" in camera.handed and self.streams[point.stream].events_a_page == 1:
                self.buffers[point.place].append((place, image.copy()))
                image = place if camera.handed == "buffer" else place[:]
            self.values[point.place][camera.key] = _dressed(image, camera.handed)
            if camera.handed == "filled":
                self.filled[point.place][camera.key] = True

    def _files(self, camera: Camera, points: Sequence[Point]) -> Iterator[tuple[int, list[Point], list[Image]]]:
        """Number of each file, the points in it, and all of its rows."""
        size = camera.new_file_after or max(1, len(points))
        for number, begin in enumerate(range(0, len(points), size)):
            part = list(points[begin : begin + size])
            rows = [self.images[point.place][camera.key] for point in part]
            early, late = ([self._image(camera) for _ in range(count)] for count in (camera.early, camera.surplus))
            yield number, part, [*early, *rows, *late]

    def _stream(self, camera: Camera, points: Sequence[Point]) -> None:
        """Through stream_resource and stream_datum."""
        folder, counted = self._folder(), 0
        for number, part, rows in self._files(camera, points):
            apart = camera.way == "hdf5" or camera.counted != "on, in one folder"
            where = folder / f"file {number}" if apart else folder
            uri, mimetype, parameters = _written(camera, where, rows, first=0 if apart else counted)
            resource = self.composed.compose_stream_resource(
                uri=uri, mimetype=mimetype, parameters=parameters, data_key=camera.key
            )
            self.resources[camera.key] += 1
            announced = _Step("stream_resource", resource.stream_resource_doc)
            if self.plan.resources_first:
                self.early.append(announced)
            first = counted if camera.counted != "from 0" else 0
            place = first + camera.early
            for group in _groups(part, camera.together):
                datum = resource.compose_stream_datum(
                    {"start": place, "stop": place + len(group)},
                    {"start": group[0].number, "stop": group[-1].number + 1},
                    self.descriptors[group[0].stream][group[0].descriptor].descriptor_doc,
                )
                steps = [_Step("stream_datum", datum)]
                if group[0] is part[0] and not self.plan.resources_first:
                    steps.insert(0, announced)
                self._announce(camera, group, steps)
                place += len(group)
            counted += len(part) if apart else len(rows)

    def _store(self, camera: Camera, points: Sequence[Point]) -> None:
        """Through resource and datum, for a handler."""
        for _, part, rows in self._files(camera, points):
            folder = self._folder()
            path, kwargs = _stored(camera, folder, rows)
            resource = self.composed.compose_resource(
                spec=camera.way, root=str(folder), resource_path=path, resource_kwargs=kwargs
            )
            announced = _Step("resource", resource.resource_doc)
            if self.plan.resources_first:
                self.early.append(announced)
            name = "index" if camera.way == "NPY_SEQ" else "point_number"
            places = iter(range(camera.early, len(rows)))
            for group in _groups(part, camera.together):
                numbers = list(itertools.islice(places, len(group)))
                if camera.together > 1:
                    page = resource.compose_datum_page({name: numbers})
                    steps, ids = [_Step("datum_page", page)], page["datum_id"]
                else:
                    data = [resource.compose_datum({name: number}) for number in numbers]
                    steps, ids = [_Step("datum", datum) for datum in data], [datum["datum_id"] for datum in data]
                for point, datum_id in zip(group, ids, strict=True):
                    self.values[point.place][camera.key] = datum_id
                    self.filled[point.place][camera.key] = False
                if group[0] is part[0] and not self.plan.resources_first:
                    steps.insert(0, announced)
                self._announce(camera, group, steps)

    def _announce(self, camera: Camera, group: Sequence[Point], steps: Iterable[_Step]) -> None:
        places = {
            "before its event": self.before[group[0].place],
            "after its event": self.after[group[-1].place],
            "after all events": self.late,
        }
        places[camera.announced].extend(steps)

    def _folder(self) -> Path:
        path = self.folder / f"Ü 1%20{uuid.uuid4().hex}"
        path.mkdir()
        return path


def _distinct(plan: Run) -> tuple[list[Stream], Camera | None]:
    """The streams with names of their own, and the camera that the first two share."""
    shared = None
    found: list[Stream] = []
    for number, stream in enumerate(plan.streams):
        own = list(stream.cameras)
        if number == 1 and plan.shared and own and found[0].cameras:
            own[0] = shared = found[0].cameras[0]
        named: dict[str, Camera] = {}
        for camera in own:
            key = camera.key if camera.key not in named else f"{camera.key} {len(named)}"
            named[key] = camera if key == camera.key else replace(camera, key=key)
        name = stream.name if stream.name not in [each.name for each in found] else f"{stream.name} {number}"
        found.append(replace(stream, name=name, cameras=tuple(named.values())))
    return found, shared


def _points(streams: Sequence[Stream], mixed: str) -> list[Point]:
    """All points in the order of the run."""
    queues: list[list[tuple[int, int, bool, int]]] = []
    for number, stream in enumerate(streams):
        numbers = stream.numbers
        cut = stream.cuts
        queues.append(
            [
                (number, each, not (stream.flies or (cut and at == len(numbers) - 1)), _described(stream, at))
                for at, each in enumerate(numbers)
            ]
        )
    if mixed == "one each":
        order = [each for turn in itertools.zip_longest(*queues) for each in turn if each is not None]
    elif mixed == "in sets":
        halves = [(queue[: len(queue) // 2], queue[len(queue) // 2 :]) for queue in queues]
        order = [each for half in zip(*halves, strict=True) for queue in half for each in queue]
    else:
        order = [each for queue in queues for each in queue]
    return [Point(place, *each) for place, each in enumerate(order)]


def _described(stream: Stream, at: int) -> int:
    """Which descriptor holds for a point."""
    return int(0 < stream.configured_again <= at + 1)


def _groups(points: Sequence[Point], together: int) -> Iterator[list[Point]]:
    """Points that one document can announce: of one descriptor, numbered without a gap."""
    group: list[Point] = []
    for point in points:
        if group and not (
            (point.stream, point.descriptor) == (group[0].stream, group[0].descriptor)
            and point.number == group[-1].number + 1
            and len(group) < together
        ):
            yield group
            group = []
        group.append(point)
    if group:
        yield group


def _written(camera: Camera, place: Path, rows: Sequence[Image], *, first: int) -> tuple[str, str, Document]:
    """Write a file, or a folder of files, for a stream_resource: its uri, mimetype and parameters."""
    shape = rows[0].shape[1:]
    if camera.way == "hdf5":
        path = place.with_suffix(".h5")
        stack = np.concatenate(rows) if camera.laid_end_to_end or camera.colour else np.stack(rows)
        with h5py.File(path, "w") as file:
            file.create_dataset("entry/counts", data=stack, chunks=(1, *stack.shape[1:]) if camera.surplus else None)
        parameters = {"dataset": "entry/counts", "chunk_shape": (1, *stack.shape[1:])}
        return f"file://localhost{_in_uri(camera, path)}", "application/x-hdf5", parameters
    photometric = "rgb" if camera.colour else "minisblack"
    place.mkdir(exist_ok=True)
    pieces = [each[np.newaxis] for row in rows for each in row] if camera.laid_end_to_end else rows
    for number, piece in enumerate(pieces, first * (camera.frames if camera.laid_end_to_end else 1)):
        tifffile.imwrite(place / f"img_{number:04d}.tif", piece.squeeze(), photometric=photometric)
    # Who states more frames than there are does so here, too: else these would be rows of several files.
    together = len(pieces[0]) + 2 * (camera.stated == "more frames")
    parameters = {"template": "img_{:04d}.tif", "chunk_shape": (together, *shape), "join_method": "stack"}
    return f"file://localhost{_in_uri(camera, place)}/", "multipart/related;type=image/tiff", parameters


def _in_uri(camera: Camera, path: Path) -> str:
    """As it stands, which is what ophyd-async writes and Tiled reads, or as the standard has it."""
    return quote(str(path)) if camera.quoted else str(path)


def _stored(camera: Camera, folder: Path, rows: Sequence[Image]) -> tuple[str, Document]:
    """Write files for a resource: its path in the folder and the arguments of its handler."""
    if camera.way == "AD_HDF5":
        with h5py.File(folder / "scan.h5", "w") as file:
            file["entry/data/data"] = np.concatenate(rows)
        return "scan.h5", {"frame_per_point": camera.frames}
    if camera.way == "AD_TIFF":
        photometric = "rgb" if camera.colour else "minisblack"
        for number, image in enumerate(each for row in rows for each in row):
            tifffile.imwrite(folder / f"scan_{number:03d}.tiff", image, photometric=photometric)
        return "", {"template": "%s%s_%3.3d.tiff", "filename": "scan", "frame_per_point": camera.frames}
    for number, row in enumerate(rows):
        np.save(folder / f"scan_{number}.npy", row[0] if camera.end_to_end and camera.frames == 1 else row)
    return "scan", {}


def _dressed(image: Image, how: str) -> Any:
    """An image as a device may hand it over."""
    match how:
        case "list":
            return image.tolist()
        case "tuples":
            return tuple(map(tuple, image)) if image.ndim == 2 else image.tolist()
        case "list of rows":
            return list(image)
        case "Fortran order":
            return np.asfortranarray(image)
        case "strided":
            return np.repeat(image, 2, axis=-1)[..., ::2]
        case "turned round":
            return np.ascontiguousarray(image[..., ::-1, :])[..., ::-1, :]
        case "read-only":
            image = image.copy()
            image.flags.writeable = False
            return image
        case "subclass":
            return image.view(Labelled)
        case "DataArray":
            return xr.DataArray(image)
        case "objects":
            return image.astype(object)
        case "masked":
            return np.ma.masked_less(image, 2)
    return image


def _fill(buffers: Sequence[tuple[Image, Image]]) -> None:
    for buffer, image in buffers:
        buffer[:] = image


def _fill_otherwise(buffers: Sequence[tuple[Image, Image]]) -> None:
    for buffer, image in buffers:
        buffer[:] = image[..., ::-1, :]


def _scribble(held: Any) -> None:
    """Empty what is within a document, as one who thinks that nobody needs it any more."""
    within = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    for inner in within:
        _scribble(inner)
        if isinstance(inner, dict | list):
            inner.clear()


@dataclass(frozen=True)
class Shown:
    """What a row of a derived run has of one key."""

    counts: float
    image: Image


@dataclass(frozen=True)
class Derived:
    """A derived run as its reader finds it: by stream, numbers and times of its events, and what its keys show."""

    numbers: Mapping[str, Sequence[int]]
    times: Mapping[str, Sequence[float]]
    shown: Mapping[tuple[str, str], Sequence[Shown]]
    start: Document
    stop: Document

    def failures(self, stream: str, key: str) -> int:
        """How many frames of a key have a reason why they are NaN."""
        said = self.stop["provenance"]["failures"]
        return sum(each["frames"] for each in said if each["reason"].startswith(f"{stream}/{key}: "))


#: Whether an image of a derived run, in the shape of what was meant, shows it.
Shows = Callable[[Image, Image], bool]


def same_counts(image: Image, meant: Image) -> bool:
    """Whether each pixel has the counts that were meant: for a denoiser that changes none."""
    return np.array_equal(image, meant.astype(np.float32))


def judged(run: StrangeRun, derived: Derived | None, said: Sequence[str], shows: Shows = same_counts) -> Counter[str]:
    """Count what became of rows and keys.

    Each row that was meant is there, in its order, and shows its image, or it is NaN with a reason where something was
    odd; a key is left out only where its images are none, and then a line names it.

    Parameters
    ----------
    said
        Lines that a user could read: outcomes, errors, log.

    Raises
    ------
    AssertionError
        For any third outcome.
    """
    found = Counter[str]()
    if derived is not None:
        assert derived.stop.get("provenance", {}).get("complete"), f"given up: {said}"
        assert derived.start["sample"] == {"name": "collagen", "steps": [1, 2]}, derived.start["sample"]
    for stream, rows in run.meant.items():
        for camera in (camera for (name, _), camera in run.cameras.items() if name == stream):
            if derived is None or (stream, camera.key) not in derived.shown:
                if any(camera.key in row.images for row in rows):
                    odd = {stream, camera.key} & set(run.odd_names)
                    assert odd or camera.may_be_left_out, f"{stream}/{camera.key} is not there: {said}"
                    named = any(stream[:50] in line and camera.key[:50] in line for line in said)
                    assert named, f"left out silently: {said}"
                    found["key left out, and said so"] += 1
                continue
            found += _judged_rows(stream, camera, rows, run.excuses[stream, camera.key], derived, shows)
    return found


def _judged_rows(
    stream: str, camera: Camera, rows: Sequence[Meant], excuse: str, derived: Derived, shows: Shows
) -> Counter[str]:
    found = Counter[str]()
    key = f"{stream}/{camera.key}"
    shown = derived.shown[stream, camera.key]
    assert list(derived.numbers[stream]) == [row.number for row in rows], f"{key}: rows {derived.numbers[stream]}"
    assert len(shown) == len(rows), key
    if any(row.time is not None for row in rows):
        times = [row.time for row in rows if row.time is not None]
        assert list(derived.times[stream][: len(times)]) == times, f"{key}: times of events"
    for place, (row, each) in enumerate(zip(rows, shown, strict=True)):
        if np.isnan(each.image).all() and np.isnan(each.counts):
            found["row NaN, with its reason"] += 1
            assert excuse or camera.key not in row.images, f"{key}, row {place}: NaN: {derived.stop['provenance']}"
            continue
        assert camera.key in row.images, f"{key}, row {place}: shows what nobody took"
        assert not camera.unusable, f"{key}, row {place}: shows what are no counts"
        image = row.images[camera.key]
        assert each.image.shape[-2:] == image.shape[-2:], f"{key}, row {place}: shape {each.image.shape}"
        assert each.counts == image.sum(dtype=float), f"{key}, row {place}: {each.counts} counts, not {image.sum()}"
        assert shows(each.image.reshape(image.shape), image), f"{key}, row {place}: another image of as many counts"
        found["row right"] += 1
    assert derived.failures(stream, camera.key) == found["row NaN, with its reason"], f"{key}: reasons"
    return found
