"""Registration of derived runs without stored pixels: the server denoises a frame when it is read."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray
from tiled.queries import Key, SpecsQuery

from bluesky_symdenoise.acquisition.deliver.claim import Claim
from bluesky_symdenoise.acquisition.deliver.outlet import straight_to_tiled
from bluesky_symdenoise.acquisition.derive.making import Making
from bluesky_symdenoise.acquisition.derive.reader import RunReader
from bluesky_symdenoise.acquisition.derive.run import DerivedRows
from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.derive.taker import PassedOn, RowTaker
from bluesky_symdenoise.acquisition.past.replay import derived_already
from bluesky_symdenoise.acquisition.request.earlier import same_settings
from bluesky_symdenoise.acquisition.request.images import image_keys
from bluesky_symdenoise.acquisition.request.options import ImageOptions, refuse_unknown
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.raw_files import raw_source
from bluesky_symdenoise.acquisition.runs.stored import TiledRun, drive
from bluesky_symdenoise.catalog.find.query import SPEC
from bluesky_symdenoise.catalog.lazy.documents import LazyKey, LazyRun, pending, write_pending
from bluesky_symdenoise.catalog.lazy.parameters import LazyImage
from bluesky_symdenoise.catalog.store.writer import DerivedRun, Emit
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.released import older_than
from bluesky_symdenoise.derived.columns import BORROWED_FROM, computed_when_read, rows_text, scalars_of
from bluesky_symdenoise.derived.decision import Decision
from bluesky_symdenoise.derived.lending import Window
from bluesky_symdenoise.derived.row import Row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.formats import by_mimetype
from bluesky_symdenoise.files.source import Source
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


def register(
    run: BlueskyRun,
    into: Container,
    *,
    denoiser: Denoiser | None = None,
    directory: str | Path | None = None,
    **options: Unpack[ImageOptions],
) -> BlueskyRun:
    """Write a derived run whose frames the server denoises when they are read, and which stores no pixels.

    It has what `bluesky_symdenoise.replay` would write, but for the scalars that need every frame
    (counts, hot and dead pixels, ``ms``, what was borrowed): these are NaN until `bluesky_symdenoise.materialize`
    stores the pixels. Frames are read here up to the first that has counts, which decides the symmetry; that one is
    also read through the server, and a run that the server cannot serve is not left behind. A derived run of the same
    recipe, lazy or not, is returned as it is, and one that stores its pixels is logged. One of before an upgrade, with
    the same settings and model, stays beside the newer one, which is logged;
    `bluesky_symdenoise.acquisition.lazy.renew.renew` takes over its settings.
    `denoiser` and `directory` are those of `bluesky_symdenoise.DenoiseCallback`.

    Parameters
    ----------
    run
        A finished raw run, from a Tiled catalogue. This computer must see its files.
    into
        Catalogue for derived runs, ``client["denoised"]``.
    **options
        `mask`, `exposure`, `symmetry`, `beam_center`, `noise`, `readout`, `streams`, `data_keys`, `borrow`: see
        `bluesky_symdenoise.acquisition.request.options.ImageOptions`.

    Returns
    -------
    BlueskyRun
        The derived run.

    Raises
    ------
    SymDenoiseError
        If the run has no image or no stop document, if its files are of a kind that is not read lazily, or if the
        server may not read them.
    """
    refuse_unknown(options, ImageOptions)
    work = Work.planned(into, activity="register", denoiser=denoiser, directory=directory, **options)
    derived, made = registered(run, work)
    if made:
        for older in older_complete(into, run, work.recipe, model=work.denoiser.model.name)[:1]:
            said = derived.start["uid"], made_with(derived), older.start["uid"], made_with(older)
            log.warning("derived run %s (%s) is newer than %s (%s), which stays", *said)
    return derived


def registered(run: BlueskyRun, work: Work) -> tuple[BlueskyRun, bool]:
    """Return the derived run of a request, and whether it was written now; see `register`."""
    into = work.container
    claim = Claim(raw_stop=run.metadata.get("stop"))
    stored = TiledRun(run, work.beamline.columns)
    existing = derived_already(stored, work, claim)
    if existing is not None:
        if not computed_when_read(existing.metadata["stop"]):
            uid = existing.start["uid"]
            log.warning("derived run %s is stored already and is kept; `symdenoise evict` makes it lazy", uid)
        return existing, False
    if claim.raw_stop is None:
        raise SymDenoiseError(
            f"run {run.start['uid']}", rule="it has no stop document yet", remedy="register it when it has ended"
        )
    plan = _plan(work, stored)
    making = _Registering(work, plan)
    rows = DerivedRows(work, making=making, outlet=straight_to_tiled(claim))
    pipeline = RunReader(work, _WithPending(rows, work, making), source=stored.frames)
    stop = claim.raw_stop
    try:
        drive(pipeline, stored, stop=lambda: stop)
        derived = into[pipeline.derived_uid]
        for (stream, key), (planned, _) in plan.items():
            _refuse_unreadable(derived[stream][key], planned)
    except BaseException:
        if pipeline.derived_uid is not None and pipeline.derived_uid in into:
            into[pipeline.derived_uid].delete(recursive=True, external_only=False)
        raise
    return derived, True


def made_with(run: BlueskyRun) -> str:
    """Return algorithm and weights of a derived run in words."""
    recipe, model = run.start["provenance"]["recipe"], run.start["provenance"]["model"]
    return f"algorithm {recipe['algorithm']}, {model['name']} {model.get('version', '?')} {model['sha256'][:12]}"


def older_complete(into: Container, raw: BlueskyRun, recipe: Recipe, *, model: str) -> list[BlueskyRun]:
    """Return complete derived runs with the settings and model of a recipe, of before an upgrade, newest first."""
    claim, found = Claim(raw_stop=raw.metadata.get("stop")), []
    for run in into.search(Key("start.raw_uid") == raw.start["uid"]).search(SpecsQuery([SPEC])).values():
        stored = run.start["provenance"]["recipe"]
        if stored == recipe.to_dict() or not same_settings(stored, recipe):
            continue
        before = stored["algorithm"] == recipe.algorithm or older_than(stored["algorithm"], recipe.algorithm)
        if before and run.start["provenance"]["model"]["name"] == model and claim.stands(run):
            found.append(run)
    return sorted(found, key=lambda run: float(run.start["time"]), reverse=True)


@dataclass(frozen=True)
class _Resolved:
    """Symmetry of each row of an image: one for all rows from `first` on, and what each earlier row says.

    `doubt` is what is doubtful about the counts of row `first`; None if nothing is.
    """

    symmetry: Symmetry
    first: int
    rows: int
    early: tuple[Symmetry | SymDenoiseError, ...]
    doubt: str | None = None

    def of(self, row: int) -> Symmetry:
        """Return the symmetry of one row.

        Raises
        ------
        SymDenoiseError
            If the row has none, or if there is no frame.
        """
        if row >= self.rows:
            raise SymDenoiseError(
                f"row {row}", rule=f"the raw image has {self.rows} rows", remedy="check the raw run's files"
            )
        found = self.symmetry if row >= self.first else self.early[row]
        if isinstance(found, SymDenoiseError):
            raise found
        return found


#: How each image is registered and the symmetry of its rows, by stream and data key.
_Plan = dict[tuple[str, str], tuple[LazyKey, _Resolved]]


def _plan(work: Work, stored: TiledRun) -> _Plan:
    """Examine the images of all streams before anything is written."""
    plan: _Plan = {}
    for stream in stored.streams.values():
        name, numbers = stream.descriptor["name"], stream.seq_nums
        keys = image_keys(stream.descriptor, work.recipe)
        if keys and (not numbers or len(set(numbers)) != len(numbers)):
            raise SymDenoiseError(
                f"stream {name!r}",
                rule="it has no events" if not numbers else "two of its events have the same number",
                remedy="replay the run instead",
            )
        for key in keys:
            if (name, key) not in plan:
                stored.refuse_other_rows(name, key, stored.run[name][key])
                source, uris = raw_source(stored.run, stream.descriptor, key)
                found = _resolved_rows(work, source)
                planned = lazy_key(
                    work.denoiser,
                    work.recipe,
                    source,
                    uris,
                    found.symmetry,
                    found.first,
                    window=Window.of(work.recipe.borrow, number=stream.rows, start=stored.start, stream=name),
                )
                plan[name, key] = planned, found
    return plan


def _resolved_rows(work: Work, source: Source) -> _Resolved:
    early: list[Symmetry | SymDenoiseError] = []
    refusal: SymDenoiseError | None = None
    for row in range(source.shape[0]):
        # A row before the first with counts is read by itself later, and says what it says by itself.
        decision = Decision(noise=work.recipe.noise, refusal=refusal)
        try:
            found = decision.of(
                work.denoiser,
                source.read(row),
                mask=work.mask,
                exposure=work.exposure,
                symmetry=work.recipe.symmetry,
                center=work.recipe.beam_center,
                readout=work.readout,
            )
        except SymDenoiseError as error:
            early.append(error)
            refusal = decision.refusal
            continue
        if decision.settled:
            return _Resolved(found, row, source.shape[0], tuple(early), decision.doubt)
        early.append(found)
    return _Resolved(Symmetry(), source.shape[0], source.shape[0], tuple(early))


class _Registering(Making):
    """Make a derived run that refers to raw files, and rows without pixels."""

    def __init__(self, work: Work, plan: _Plan) -> None:
        self._work, self._plan = work, plan

    def derived_run(self, emit: Emit, work: Work, **made: Any) -> DerivedRun:
        """Return a lazy run."""
        return LazyRun(emit, plan={name: planned for name, (planned, _) in self._plan.items()}, **made)

    def shapes_known(self, stream: Stream) -> bool:
        """Return True: the shapes are those of the registered files."""
        return True

    def decide(self, stream: Stream) -> None:
        """Give the images of a stream the symmetry that was found."""
        for key in stream.keys:
            _, resolved = self._plan[stream.name, key]
            if resolved.first < resolved.rows:
                stream.images[key].decide(resolved.symmetry, doubt=resolved.doubt)

    def row(self, stream: Stream, key: str, event: Event, image: NDArray[Any] | None) -> Row:
        """Return what is known before a frame is denoised."""
        planned, resolved = self._plan[stream.name, key]
        row = stream.frames.announced().index(event.seq_num)
        symmetry, nothing = resolved.of(row), np.empty(0, np.float32)
        scalars = scalars_of(symmetry) | dict.fromkeys(pending(self._work.recipe), math.nan)
        if self._work.recipe.borrow is not None:
            scalars[BORROWED_FROM] = rows_text(lender.row for lender in planned.image.lenders(row))
        return Row(nothing, nothing, scalars)


class _WithPending(PassedOn):
    """Write the scalars that are not known yet beside the events of each stream."""

    def __init__(self, to: RowTaker, work: Work, making: _Registering) -> None:
        super().__init__(to)
        self._work, self._making = work, making
        self._start: Document = {}

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Begin, and remember the raw run."""
        self._start = start
        super().open(start, descriptor, keys)

    def begin(self, stream: Stream) -> None:
        """Give the images of a stream their symmetry."""
        self._making.decide(stream)
        super().begin(stream)

    def end_stream(self, stream: Stream) -> None:
        """Write the columns of a stream that has ended."""
        super().end_stream(stream)
        self.settle()
        rows = len(stream.done)
        if rows:
            columns = {f"{key}_{name}": [math.nan] * rows for key in stream.keys for name in pending(self._work.recipe)}
            uid = self._work.recipe.derived_uid(self._start["uid"])
            node = self._work.container[uid].base[stream.name].base
            write_pending(node, columns, self._start.get("tiled_access_tags"))


def lazy_key(
    denoiser: Denoiser,
    recipe: Recipe,
    source: Source,
    uris: Sequence[str],
    symmetry: Symmetry,
    first_row: int,
    *,
    window: Window | None,
) -> LazyKey:
    """Return how an image is registered if this symmetry holds from this row on.

    Parameters
    ----------
    window
        Rows that lend to each other; None if none do.
    """
    environment = denoiser.environment()
    if environment["dtype"] != "float32":
        raise SymDenoiseError(
            f"a denoiser with dtype {environment['dtype']}",
            rule="servers denoise in float32",
            remedy="leave dtype out, or use replay",
        )
    if recipe.fold_sha256 is not None:
        raise SymDenoiseError(
            "a checked symmetry",
            rule="servers decide the symmetry of each frame separately",
            remedy="name the group, or use replay",
        )
    if (denoiser.defects, denoiser.views, denoiser.sums) != ("find", 1, "free"):
        raise SymDenoiseError(
            f"a denoiser with defects={denoiser.defects!r}, views={denoiser.views} and sums={denoiser.sums!r}",
            rule="servers use defects='find', views=1 and sums='free'",
            remedy="leave these out, or use replay",
        )
    image = LazyImage(
        quantity="intensity",
        recipe=recipe,
        model=denoiser.model.name,
        device="cpu" if environment["device"] == "cpu" else "auto",
        threads=environment["threads"],
        point_group=symmetry.point_group,
        beam_center=symmetry.beam_center,
        first_row=first_row,
        mimetype=source.mimetype,
        shape=source.shape,
        dtype=source.dtype.str,
        dataset=source.dataset,
        stamps=source.stamps,
        rows=None if window is None else window.number,
        scan=None if window is None else window.scan,
    )
    # Parse the parameters as the server will, so that what it would refuse is refused here.
    of = by_mimetype(source.mimetype)
    return LazyKey(LazyImage.from_dict(image.to_dict()), tuple(uris), is_directory=of is not None and of.folder)


def _refuse_unreadable(array: Any, planned: LazyKey) -> None:
    """Read one pixel of the first frame with counts, once: Tiled's own client would retry a failure for long."""
    row = min(planned.image.first_row, array.shape[0] - 1)
    where = ",".join([str(row), *["0"] * (len(array.shape) - 1)])
    answer = array.context.http_client.get(
        array.item["links"]["full"], params={"slice": where}, headers={"Accept": "application/json"}
    )
    if answer.is_success:
        return
    said = answer.json().get("detail", "") if answer.status_code == HTTPStatus.UNPROCESSABLE_ENTITY else ""
    remedy = "add its folder to readable_storage in the server's configuration, then register the run again"
    if "this version computes" in said:
        remedy = "install this version of bluesky-symdenoise on the server, too, then register the run again"
    raise SymDenoiseError(
        f"file {planned.uris[0]}",
        rule=f"the server cannot serve it ({said or f'status {answer.status_code}: outside its readable storage?'})",
        remedy=remedy,
    )
