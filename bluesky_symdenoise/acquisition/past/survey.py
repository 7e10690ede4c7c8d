"""Survey of runs and files: what denoising them would gain, alone and with borrowed photons, and what it would cost."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.images import Found
from bluesky_symdenoise.acquisition.past.forecast import stored_bytes
from bluesky_symdenoise.acquisition.past.in_memory import gathered
from bluesky_symdenoise.acquisition.past.window import bad_in, found_symmetry, window_of, within
from bluesky_symdenoise.acquisition.request.options import ImageOptions
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.runs.stored import raw_only, stored_run
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files import open_frames
from bluesky_symdenoise.physics.counts.verdict import LATER_PIXELS, sampled, verdict
from bluesky_symdenoise.physics.frame import as_mask
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.noise import rounded_mantissa, rounded_to_sigma
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.selfcheck.worth import Worth, halves, worth

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser

#: Frames that are read, which are consecutive and in the middle, and how many in the middle of them are judged.
FRAMES, JUDGED = 5, 3
#: Pixels of a frame that is tested for counts.
TESTED = LATER_PIXELS


@dataclass(frozen=True)
class Surveyed:
    """One image of a run, or one series of files.

    Attributes
    ----------
    name
        Uid of the run, or the name of the files; with an image's data key.
    frames, shape
        Number of frames, and (y, x).
    counts
        ``yes``, or what is doubtful or wrong about their being photon counts.
    level
        Mean counts per pixel.
    symmetry
        Point group that the five frames support together.
    alone, borrowed
        What denoising is worth at half the exposure: of each frame alone, and with the photons of up to four neighbours
        where they agree; None where that cannot be told.
    minutes, gigabytes
        Time and size of denoising all frames, each alone.
    minutes_borrowed
        Time if each borrows from four others.
    failure
        Why it cannot be read or denoised; None if it can.
    """

    name: str
    frames: int = 0
    shape: tuple[int, int] = (0, 0)
    counts: str = ""
    level: float = float("nan")
    symmetry: str = ""
    alone: Worth | None = None
    borrowed: Worth | None = None
    minutes: float = float("nan")
    minutes_borrowed: float = float("nan")
    gigabytes: float = float("nan")
    failure: str | None = None

    @property
    def gain(self) -> float:
        """The larger of both exposures; NaN where neither is known."""
        known = [each.exposure for each in (self.alone, self.borrowed) if each is not None]
        return max(known, default=float("nan"))

    def to_dict(self) -> dict[str, Any]:
        """Return all as numbers and text, for JSON: what is not known is None."""
        return {key: _plain(value) for key, value in asdict(self).items()} | {"gain": _plain(self.gain)}


@dataclass(frozen=True)
class _Series:
    """Frames of one image, read one by one."""

    name: str
    number: int
    read: Callable[[int], NDArray[Any]]
    #: What is said of a frame, by its number.
    settings: Callable[[int], Found]


def survey(
    sources: Any, *, denoiser: Denoiser | None = None, seed: int = 0, **options: Unpack[ImageOptions]
) -> list[Surveyed]:
    """Return what denoising runs or files would gain and cost, those with the largest gain first.

    Five consecutive frames in the middle are read. Whether they are counts, and their symmetry, is found from the whole
    frames, the gain in a window of 256 x 256 pixels: each photon is kept or held out with equal chance, the frames in
    the middle are denoised from the kept ones, alone and with those of the other four lent, and compared with those
    held out. A source that cannot be read is a row that says why.

    Parameters
    ----------
    sources
        Raw runs as `bluesky_symdenoise.replay` takes them, and names of files or glob patterns; one, or several of
        either kind.
    denoiser
        By default the pretrained one.
    seed
        Of the choice of photons.
    **options
        See `bluesky_symdenoise.acquisition.request.options.ImageOptions`; of files, `streams` and `data_keys` are not
        used.
    """
    return ranked(surveyed(sources, denoiser=denoiser, seed=seed, **options))


def ranked(rows: Iterable[Surveyed]) -> list[Surveyed]:
    """Return rows by their gain, the largest first, and those without one at the end."""
    return sorted(rows, key=lambda row: -row.gain if row.gain > 0 else np.inf)


def surveyed(
    sources: Any, *, denoiser: Denoiser | None = None, seed: int = 0, **options: Unpack[ImageOptions]
) -> Iterator[Surveyed]:
    """Yield the rows of `survey` one after another, in the order of the sources."""
    if denoiser is None:
        from bluesky_symdenoise.denoiser.infer import Denoiser as Network

        denoiser = Network.pretrained()
    asked = Request.asked(activity="survey", denoiser=denoiser, **options)
    for source in _several(sources):
        try:
            found = list(_series(source, asked)) if not _is_file(source) else None
        except Exception as error:
            # One run of many that is broken, in whatever way, must not end the survey of the others.
            yield Surveyed(_name(source), failure=f"not readable: {error}")
            continue
        if found is None:
            yield _of_files(str(source), asked, seed)
        else:
            yield from (_row(each, asked, seed) for each in found)


def _of_files(pattern: str, asked: Request, seed: int) -> Surveyed:
    try:
        with open_frames(pattern) as stack:
            given = asked.given()
            mask = stack.mask if asked.mask is None else asked.mask if stack.mask is None else stack.mask | asked.mask
            center = given.get("beam_center") or stack.beam_center
            settings = Found(mask, center, asked.recipe.symmetry, asked.readout)
            return _row(_Series(pattern, len(stack), lambda at: stack[at], lambda _: settings), asked, seed)
    except Exception as error:
        # As for a run.
        return Surveyed(pattern, failure=f"not readable: {error}")


def _series(source: Any, asked: Request) -> Iterator[_Series]:
    """Yield the images of a run."""
    run = raw_only(stored_run(source))
    found = gathered(run, asked)
    for stream, events in found.events.items():
        for key, images in found.images(stream).items():
            each = int(np.prod(images.shape[:-2], dtype=int))
            name = f"{run.start['uid'][:8]} {key if stream == 'primary' else f'{stream}/{key}'}"

            def read(at: int, images: Any = images, each: int = each) -> NDArray[Any]:
                image = images.counts(at // each)
                return np.asarray(image.reshape(-1, *image.shape[-2:])[at % each])

            def settings(at: int, images: Any = images, each: int = each) -> Found:
                return cast(Found, images.settings(at // each))

            yield _Series(name, len(events) * each, read, settings)


def _row(series: _Series, asked: Request, seed: int) -> Surveyed:
    try:
        return _judged(series, asked, seed)
    except Exception as error:
        # One image that cannot be judged must not end the survey of the others.
        return Surveyed(series.name, series.number, failure=f"not readable: {error}")


def _judged(series: _Series, asked: Request, seed: int) -> Surveyed:
    number = min(FRAMES, series.number)
    if not number:
        raise SymDenoiseError(series.name, rule="it has no frames", remedy="choose another image")
    first = (series.number - number) // 2
    begun = clock.perf_counter()
    frames = [series.read(first + at) for at in range(number)]
    reading = (clock.perf_counter() - begun) / number
    said_of = series.settings(first + number // 2)
    shape = (frames[0].shape[-2], frames[0].shape[-1])
    bad = as_mask(said_of.mask, shape)
    row = Surveyed(series.name, series.number, shape)
    if said_of.readout is not None:
        return replace(row, counts="readout", failure="not testable: no photons of a readout can be held out")
    bad = bad_in(frames, bad)
    said = "stated" if asked.recipe.noise == "poisson" else _counts_said(frames[number // 2], bad)
    level = float(np.mean([frame[~bad].mean() if not bad.all() else np.nan for frame in frames]))
    if said.startswith("no"):
        return replace(row, counts=said, level=level)
    stack = np.stack(frames)
    if not np.where(bad, 0, stack).any():
        return replace(row, counts=said, level=0.0, failure="no counts in the frames that were read")
    resolved = found_symmetry(asked.denoiser, stack, bad, symmetry=said_of.symmetry, center=said_of.center)
    at = window_of(stack, bad, resolved)
    kept, held = halves([np.where(bad[at], 0, frame[at]) for frame in frames], np.random.default_rng(seed))
    trial = _Trial(asked, kept, bad[at], within(resolved, at))
    rows = range(max((number - JUDGED) // 2, 0), min((number + JUDGED) // 2, number))
    # The first time takes longer.
    trial.alone(rows[0])
    alone = worth(kept, held, rows, trial.alone, ~bad[at])
    scale = bad.size / bad[at].size
    borrowed = worth(kept, held, rows, trial.borrowed, ~bad[at]) if number > 1 else None
    return replace(
        row,
        counts=said,
        level=level,
        symmetry=resolved.point_group,
        alone=alone,
        borrowed=borrowed,
        minutes=(trial.seconds[False] * scale + reading) * series.number / 60,
        minutes_borrowed=(trial.seconds[True] * scale + reading) * series.number / 60,
        gigabytes=trial.bytes * scale * series.number / 1e9,
    )


class _Trial:
    """Denoise windows of thinned rows, and remember how long that took and how many bytes one needs.

    Attributes
    ----------
    seconds
        The shortest time that a row took, alone (False) and with what others lent (True).
    """

    def __init__(
        self, asked: Request, kept: Sequence[NDArray[np.float64]], bad: NDArray[np.bool_], symmetry: Symmetry
    ) -> None:
        self._asked, self._kept, self._bad, self._symmetry = asked, kept, bad, symmetry
        self.seconds, self.bytes = {False: np.inf, True: np.inf}, 0

    def alone(self, row: int) -> NDArray[np.float64]:
        """Return the expected counts of a row from its own."""
        intensity, sigma = self._denoised(row, ())
        recipe = self._asked.recipe
        self.bytes = stored_bytes(
            rounded_to_sigma(intensity, sigma, fraction=recipe.rounding),
            rounded_mantissa(sigma, bits=recipe.sigma_bits),
        )
        return intensity.astype(np.float64)

    def borrowed(self, row: int) -> NDArray[np.float64]:
        """Return the expected counts of a row, to which all others may lend."""
        lent = [Lent(frame, (float(at - row),)) for at, frame in enumerate(self._kept) if at != row]
        return self._denoised(row, lent)[0].astype(np.float64)

    def _denoised(self, row: int, lent: Sequence[Lent]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        begun = clock.perf_counter()
        made = self._asked.denoiser(self._kept[row], mask=self._bad, symmetry=self._symmetry, lent=lent)
        self.seconds[bool(lent)] = min(self.seconds[bool(lent)], clock.perf_counter() - begun)
        return made["intensity"].values, made["sigma"].values


def _counts_said(frame: NDArray[Any], bad: NDArray[np.bool_]) -> str:
    found = verdict(*sampled(frame, bad, TESTED))
    if found.kind == "counts":
        return "yes"
    if found.kind == "too few":
        return "too few to say"
    return f"{'no' if found.kind == 'not counts' else 'doubtful'}: {found.why}"


def _several(sources: Any) -> list[Any]:
    """Return sources as a list: one run or name is one of them."""
    if isinstance(sources, str | Path) or hasattr(sources, "start"):
        return [sources]
    if hasattr(sources, "values") and hasattr(sources, "context"):
        return list(sources.values())
    return list(sources)


def _is_file(source: Any) -> bool:
    return isinstance(source, str | Path) and not str(source).endswith(".jsonl")


def _name(source: Any) -> str:
    return str(source.start["uid"])[:8] if hasattr(source, "start") else str(source)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value
