"""Independent evidence about one rate: a frame, its symmetry mates and a held-out target, simulated or thinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import symmetry_gate
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.training.sequences import fluxes, lent_evidence, offsets, row_rates
from bluesky_symdenoise.training.simulate import (
    Image,
    narrow_rate,
    peakless_rate,
    random_mask,
    random_rate,
    random_spots,
    stopped_rate,
    straight_shadow,
)

#: Kinds of simulated mates and their shares: as the symmetry predicts, missing, or wrong in one of four ways.
MATE_KINDS = ("exact", "absent", "shifted", "scaled", "broken", "wrong")
MATE_SHARES = (0.4, 0.12, 0.2, 0.09, 0.11, 0.08)
#: Exposures of targets that expect a number of counts.
TARGET_EXPOSURES = (10.0, 1000.0)
#: Number of parts of a real frame of which the one with the most counts is taken, where bright parts are wanted.
BRIGHTEST_OF = 8


@dataclass(frozen=True)
class Sample:
    """One training case; all (y, x) float32. ``target`` was counted at ``target_exposure``, independently.

    Counts are whole numbers: a target that is not whole is the expected number.
    """

    counts: NDArray[np.float32]
    exposure: NDArray[np.float32]
    mate_counts: NDArray[np.float32]
    mate_exposure: NDArray[np.float32]
    target: NDArray[np.float32]
    target_exposure: NDArray[np.float32]
    lent_counts: NDArray[np.float32] | None = None
    lent_exposure: NDArray[np.float32] | None = None

    def stacked(self) -> NDArray[np.float32]:
        """Return (8, y, x) in the order of the fields; zeros for what other rows do not lend."""
        nothing = np.zeros_like(self.counts)
        return np.stack(
            [
                self.counts,
                self.exposure,
                self.mate_counts,
                self.mate_exposure,
                self.target,
                self.target_exposure,
                nothing if self.lent_counts is None else self.lent_counts,
                nothing if self.lent_exposure is None else self.lent_exposure,
            ]
        )


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of samples.

    Attributes
    ----------
    real
        Parts of real frames, if there are any; the rest is simulated.
    shadow
        Share of the simulated with straight shadows, in half of them not on the mates.
    peakless
        Share of the simulated without any pattern, only something flat or smooth.
    stopped
        Share of the simulated with small-angle scattering around a beam stop. Of the real parts: share taken where
        the frame is bright, mostly around the beam stop.
    blurred
        Share of the other simulated that are smeared by 0.7 to 8 pixels, as a wide or divergent beam does.
    narrow
        Share of the other simulated with bright powder rings of one to three pixels.
    spotted
        Share of the simulated with lone spots, in half of them not on the mates.
    read
        Share of the simulated with the read noise of an integrating detector: counts are the signal plus its variance.
    lent
        Share of all samples to which other rows lend photons.
    target_counts
        Counts that a simulated pixel's target expects, at 10 to 1000 times the exposure: so precisely it is to be
        predicted. 0 for the same, random exposure in all pixels.
    known_from
        Expected counts from which on they are a simulated pixel's target themselves, instead of Poisson counts.
    """

    real: float = 0.4
    shadow: float = 0.0
    peakless: float = 0.0
    blurred: float = 0.0
    stopped: float = 0.0
    narrow: float = 0.0
    spotted: float = 0.0
    read: float = 0.0
    lent: float = 0.0
    target_counts: float = 0.0
    known_from: float = np.inf


@dataclass(frozen=True)
class RealFrames:
    """Counts of real frames with their mask, (frame, y, x) and (y, x), and where they come from, if that is known."""

    name: str
    counts: NDArray[Any]
    mask: NDArray[np.bool_]
    origin: str = ""


def real_frames(folder: Path) -> list[RealFrames]:
    """Return the sets of a folder with ``role = train`` and ``noise = counting``: HDF5 with ``counts`` and ``mask``.

    Raises
    ------
    SymDenoiseError
        If there is no such folder, or no such set in it.
    """
    if not folder.is_dir():
        raise SymDenoiseError(f"{folder}", rule="there is no such folder", remedy="give the folder of the real frames")
    out = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            if "counts" not in file or file.attrs.get("role") != "train" or file.attrs.get("noise") != "counting":
                continue
            # All versions of one source, "NAME@VERSION", have the same origin.
            origin = str(file.attrs.get("origin", "")).partition("@")[0]
            out.append(RealFrames(path.stem, file["counts"][()], file["mask"][()].astype(bool), origin))
    if not out:
        raise SymDenoiseError(
            f"{folder}",
            rule="it has no HDF5 file with counts, role = train and noise = counting",
            remedy="mark the files, or leave --data out to train on simulations only",
        )
    return out


def _poisson(rng: np.random.Generator, mean: Image) -> Image:
    return rng.poisson(np.minimum(mean, 1e9)).astype(np.float64)


def _half_plane(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x - shape[1] / 2) + np.sin(angle) * (y - shape[0] / 2)
    return np.asarray(along > rng.uniform(-0.5, 0.5) * max(shape))


def _blobs(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(2, 15), mode="wrap")
    return np.asarray(field > np.quantile(field, rng.uniform(0.6, 0.97)))


def _shift(rng: np.random.Generator) -> tuple[float, float]:
    size = np.exp(rng.uniform(np.log(0.15), np.log(2.5)))
    angle = rng.uniform(0, 2 * np.pi)
    return float(size * np.sin(angle)), float(size * np.cos(angle))


def _gradient(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    y, x = np.mgrid[-1 : 1 : 1j * shape[0], -1 : 1 : 1j * shape[1]]
    slope = rng.normal(0, 0.15, size=3)
    return np.asarray(np.exp(slope[0] + slope[1] * y + slope[2] * x))


def _mate_exposure(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Return how many mates each pixel has: one or three, fewer where some are masked or off the detector."""
    number = int(rng.choice([1, 3]))
    exposure = np.zeros(shape)
    for _ in range(number):
        seen = ~random_mask(rng, shape)
        if rng.uniform() < 0.2:
            seen &= _half_plane(rng, shape)
        exposure += seen
    return exposure


def simulated_sample(rng: np.random.Generator, size: int, mixture: Mixture) -> Sample:
    """Return a random pattern: Poisson counts, about 0.02 to 10^4 per pixel, mates that may be wrong, and a target."""
    shape = (size, size)
    peakless = mixture.peakless and rng.uniform() < mixture.peakless
    stopped = not peakless and mixture.stopped and rng.uniform() < mixture.stopped
    # Around a beam stop, most pixels have far fewer counts than the mean.
    least, most = (0.1, 1000) if stopped else (0.02, 300 if rng.uniform() < 0.85 else 1e4)
    level = np.exp(rng.uniform(np.log(least), np.log(most)))
    narrow = not (peakless or stopped) and mixture.narrow and rng.uniform() < mixture.narrow
    of_kind = peakless_rate if peakless else stopped_rate if stopped else narrow_rate if narrow else random_rate
    rate = of_kind(rng, shape) * level
    if not (stopped or narrow) and mixture.blurred and rng.uniform() < mixture.blurred:
        rate = ndimage.gaussian_filter(rate, np.exp(rng.uniform(np.log(0.7), np.log(8))), mode="nearest")
    kind = rng.choice(MATE_KINDS, p=MATE_SHARES)
    mate_rate = rate
    if mixture.shadow and rng.uniform() < mixture.shadow:
        rate = rate * straight_shadow(rng, shape)
        mate_rate = rate if rng.uniform() < 0.5 else mate_rate
    if mixture.spotted and rng.uniform() < mixture.spotted:
        spots = random_spots(rng, rate)
        rate = rate + spots
        mate_rate = mate_rate + spots if rng.uniform() < 0.5 else mate_rate
    if kind == "wrong":
        mate_rate = random_rate(rng, shape) * level
    if kind == "shifted" or (kind == "broken" and rng.uniform() < 0.3):
        mate_rate = ndimage.shift(mate_rate, _shift(rng), order=1, mode="nearest")
    if kind == "scaled":
        mate_rate = mate_rate * _gradient(rng, shape)
    if kind == "broken":
        other = random_rate(rng, shape) * level if rng.uniform() < 0.5 else mate_rate * np.exp(rng.normal(0, 1))
        mate_rate = np.where(_blobs(rng, shape), other, mate_rate)
    exposure = (~random_mask(rng, shape)).astype(np.float64)
    mate_exposure = np.zeros(shape) if kind == "absent" else _mate_exposure(rng, shape)
    target_exposure = np.full(shape, np.exp(rng.uniform(0, np.log(1000))))
    counts, lent = _poisson(rng, exposure * rate), None
    if mixture.read and rng.uniform() < mixture.read:
        # Signal of an integrating detector, plus its variance: both have the mean and the variance of counts.
        noise = np.exp(rng.uniform(np.log(0.5), np.log(40)))
        rate, mate_rate = rate + noise, mate_rate + noise
        read = rng.normal(0, np.sqrt(noise), shape)
        counts = np.maximum(counts + noise + read, 0) * exposure
    elif mixture.lent and rng.uniform() < mixture.lent:
        lent = _lent(rng, rate, counts, exposure, level)
    if mixture.target_counts:
        target_exposure = np.clip(mixture.target_counts / rate, *TARGET_EXPOSURES)
    expected = target_exposure * rate
    return _gated(
        lent=lent,
        counts=counts,
        exposure=exposure,
        mate_counts=_poisson(rng, mate_exposure * mate_rate),
        mate_exposure=mate_exposure,
        target=np.where(expected >= mixture.known_from, expected, _poisson(rng, expected)),
        target_exposure=target_exposure,
    )


def _lent(
    rng: np.random.Generator, rate: Image, counts: Image, exposure: Image, level: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return counts and exposure that simulated rows lend to a frame."""
    steps = offsets(rng)
    rates = row_rates(rng, rate, steps, lambda: random_rate(rng, (rate.shape[0], rate.shape[1])) * level)
    rows = _poisson(rng, rates * fluxes(rng, len(steps))[:, None, None] * exposure)
    return lent_evidence(counts, exposure, rows, exposure, steps)


def _moved(rng: np.random.Generator, counts: NDArray[np.int64], shift: tuple[float, float]) -> NDArray[np.int64]:
    """Return the counts with photons moved by whole pixels: means are interpolated and counts stay Poisson."""
    for axis, distance in enumerate(shift):
        whole = int(np.floor(distance))
        further = rng.binomial(counts, distance - whole)
        counts = np.roll(counts - further, whole, axis) + np.roll(further, whole + 1, axis)
    return counts


def _part(
    rng: np.random.Generator, frames: RealFrames, size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], tuple[int, tuple[slice, slice]]]:
    """Return counts, and where they were measured, of a part of one of the frames; and which part of which frame."""
    _, height, width = frames.counts.shape
    y0, x0 = rng.integers(0, max(1, height - size + 1)), rng.integers(0, max(1, width - size + 1))
    at = np.s_[y0 : y0 + size, x0 : x0 + size]
    good = ~frames.mask[at]
    index = int(rng.integers(len(frames.counts)))
    return np.where(good, frames.counts[index][at], 0).astype(np.int64), good, (index, at)


def real_sample(rng: np.random.Generator, sets: Sequence[RealFrames], size: int, mixture: Mixture) -> Sample:
    """Return a crop of a real frame, its counts split three ways by binomial thinning: frame, mates, target."""
    while True:
        frames = sets[int(rng.integers(len(sets)))]
        tried = BRIGHTEST_OF if mixture.stopped and rng.uniform() < mixture.stopped else 1
        parts = [_part(rng, frames, size) for _ in range(tried)]
        counts, good, (index, at) = max(parts, key=lambda part: int(part[0].sum()))
        mean = counts[good].mean() if good.mean() > 0.3 else 0.0
        if mean > 0.02:
            break
    k, flips = int(rng.integers(4)), rng.uniform() < 0.5
    counts, good = np.rot90(counts, k), np.rot90(good, k)
    if flips:
        counts, good = counts[::-1], good[::-1]
    share = min(0.6, np.exp(rng.uniform(np.log(0.02), np.log(max(0.6 * mean, 0.03)))) / mean)
    kind = rng.choice(MATE_KINDS, p=MATE_SHARES)
    shape = counts.shape
    exposure = (good & ~random_mask(rng, (shape[0], shape[1]))).astype(np.float64)
    number = 0.0 if kind == "absent" else min(float(rng.choice([1, 3])), 0.6 * (1 - share) / share)
    own = rng.binomial(counts, share)
    rest = counts - own
    mate_counts = rng.binomial(rest, number * share / (1 - share))
    target = rest - mate_counts
    lent, taken, borrowing = None, 0.0, mixture.lent and rng.uniform() < mixture.lent
    if borrowing and len(frames.counts) > 2:
        steps = offsets(rng)
        steps = steps[(steps[:, 0] + index >= 0) & (steps[:, 0] + index < len(frames.counts)) & (steps[:, 0] != 0)]
        if len(steps):
            chosen = frames.counts[index + steps[:, 0].astype(int)][:, *at]
            rows = np.rot90(rng.binomial(np.where(frames.mask[at], 0, chosen).astype(np.int64), share), k, axes=(1, 2))
            rows = rows[:, ::-1] if flips else rows
            lent = lent_evidence(own * exposure, exposure, rows * exposure, exposure, steps)
    elif borrowing and (repeats := int(0.5 * (1 - share - number * share) / share)) > 0:
        # A lone frame lends to itself: its photons are split among rows.
        steps = offsets(rng)[:repeats]
        left, rows = 1 - share - number * share, np.zeros((len(steps), *shape), np.int64)
        for row in rows:
            row[...] = rng.binomial(target, share / left)
            target, left = target - row, left - share
        taken = len(steps) * share
        lent = lent_evidence(own * exposure, exposure, rows * exposure, exposure, steps)
    mate_good = good
    if kind == "shifted":
        shift = _shift(rng)
        mate_counts = _moved(rng, mate_counts, shift)
        mate_good = _moved(rng, (good * 1000).astype(np.int64), shift) > 999
    if kind == "scaled":
        gain = _gradient(rng, (shape[0], shape[1]))
        mate_counts = rng.binomial(mate_counts, gain / gain.max())
    if kind in ("broken", "wrong"):
        where = _blobs(rng, (shape[0], shape[1])) if kind == "broken" else np.ones(shape, bool)
        turned = (slice(None, None, -1), slice(None, None, -1))
        mate_counts = np.where(where, mate_counts[turned], mate_counts)
        mate_good = np.where(where, mate_good[turned], mate_good)
    mate_seen = mate_good & ~random_mask(rng, (shape[0], shape[1]))
    mate_exposure = np.where(mate_seen, number, 0.0)
    pad = [(0, size - side) for side in shape]
    return _gated(
        counts=np.pad(own * exposure, pad),
        exposure=np.pad(exposure, pad),
        mate_counts=np.pad(np.where(mate_exposure > 0, mate_counts, 0.0), pad),
        mate_exposure=np.pad(mate_exposure, pad),
        target=np.pad(target.astype(np.float64), pad),
        target_exposure=np.pad(np.where(good, (1 - share - number * share - taken) / share, 0.0), pad),
        lent=None if lent is None else (np.pad(lent[0], pad), np.pad(lent[1], pad)),
    )


def _gated(
    *,
    counts: Image,
    exposure: Image,
    mate_counts: Image,
    mate_exposure: Image,
    target: Image,
    target_exposure: Image,
    lent: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> Sample:
    """Return the sample with the mates that the symmetry test accepts, as in use; unknowable pixels are ignored."""
    if mate_exposure.any():
        holds = symmetry_gate(Frame(counts, exposure, 1.0), Frame(mate_counts, mate_exposure, 1.0))
        mate_counts, mate_exposure = mate_counts * holds, mate_exposure * holds
    knowable = (exposure + mate_exposure + (0 if lent is None else lent[1])) > 0
    return Sample(
        counts.astype(np.float32),
        exposure.astype(np.float32),
        mate_counts.astype(np.float32),
        mate_exposure.astype(np.float32),
        (target * knowable).astype(np.float32),
        (target_exposure * knowable).astype(np.float32),
        *(() if lent is None else lent),
    )


def sample(rng: np.random.Generator, sets: Sequence[RealFrames], *, size: int, mixture: Mixture) -> Sample:
    """Return one case, real in the mixture's share if there are real frames."""
    drawn = sets and rng.uniform() < mixture.real
    return real_sample(rng, sets, size, mixture) if drawn else simulated_sample(rng, size, mixture)
