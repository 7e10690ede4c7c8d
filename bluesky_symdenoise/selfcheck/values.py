"""Results of a self-check, as they are stored in the stop document of a derived run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Verdicts: nothing contradicts the run's errors, something does, nothing can be said, nothing was computed.
AGREES, DOUBTFUL, NOT_TESTABLE, NOT_COMPUTED = "agrees", "doubtful", "not testable", "not computed"
VERDICTS = (AGREES, DOUBTFUL, NOT_TESTABLE, NOT_COMPUTED)
#: Version of the form in which they are stored.
FORM = 1

Plain = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Value and standard error of a quantity; NaN, with the reason, where it is not testable."""

    value: float
    error: float
    why_not: str = ""

    @classmethod
    def not_testable(cls, why: str) -> Measured:
        """Return the quantity that cannot be measured for this reason."""
        return cls(math.nan, math.nan, why)

    def __bool__(self) -> bool:
        return not self.why_not

    def __str__(self) -> str:
        if self.why_not:
            return f"{NOT_TESTABLE} ({self.why_not})"
        # Two digits of the error.
        digits = 2 if self.error <= 0 else max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"

    def to_plain(self) -> Any:
        """Return JSON: ``[value, error]``, or the reason as text."""
        return self.why_not or [_short(self.value), _short(self.error)]

    @classmethod
    def from_plain(cls, stored: Any) -> Measured:
        """Return the quantity from the value of `to_plain`."""
        if isinstance(stored, str):
            return cls.not_testable(stored[:200])
        value, error = (float(each) for each in stored)
        return cls(value, error)


@dataclass(frozen=True)
class Stratum:
    """Pixels with `low` to `high` expected counts, and their observed over stated error.

    Attributes
    ----------
    pixels, ratio
        Of the input half, against the held-out half.
    sham
        Of the frame that was drawn anew.
    """

    low: float
    high: float
    pixels: int
    ratio: Measured
    sham: Measured

    @property
    def middle(self) -> float:
        """Expected counts per pixel in the middle of the range, on a logarithmic scale."""
        return math.sqrt((self.low or self.high / 3) * min(self.high, 3 * self.low or self.high))

    @property
    def name(self) -> str:
        """Range of the expected counts per pixel."""
        if self.low <= 0:
            return f"below {self.high:g}"
        return f"above {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Sums:
    """Error of sums over the quadratic sum of sigma: against held-out counts, and of the frame drawn anew."""

    name: str
    ratio: Measured
    sham: Measured


@dataclass(frozen=True)
class Structure:
    """Structure of one size after it was drawn anew and denoised: share that is kept, share of the noise left."""

    pixels: int
    kept: Measured
    noise_left: Measured


@dataclass(frozen=True)
class Spots:
    """Spots of the denoised frame, and what becomes of them when it is drawn anew and denoised again.

    Attributes
    ----------
    there
        Number of spots in the truth.
    kept
        Their counts after denoising, over the true ones.
    lost
        Number of those with less than half of their counts.
    invented, by_noise
        Number of spots that only the frame denoised again, and that only its raw counts have.
    """

    there: int
    kept: Measured
    lost: int
    invented: int
    by_noise: int


@dataclass(frozen=True)
class Residual:
    """Held-out counts minus expected ones.

    Attributes
    ----------
    radius, mean
        Radius in pixels, and mean residual over its standard error there: near 1 in size if it is noise.
    p
        Probability that two raw halves differ by more in their rings; None without a beam centre.
    correlation
        Correlation of residuals at each distance in pixels.
    """

    radius: tuple[float, ...]
    mean: tuple[float, ...]
    p: float | None
    correlation: tuple[tuple[int, Measured], ...]


@dataclass(frozen=True)
class ImageCheck:
    """Self-check of one image data key of a stream.

    Attributes
    ----------
    verdict, reasons
        One of `VERDICTS`, and why, in sentences.
    rows, of_rows
        Rows of the raw stream that were checked, and the number of those that could have been.
    pixels, counts
        Number of pixels that were compared, and mean expected counts per pixel of the input half.
    gains
        Gain in held-out log-likelihood, in millinat per pixel, over ``raw counts``, a ``Gaussian filter`` and, where
        photons were borrowed, ``the frame alone``.
    flux
        Expected over held-out counts, summed over all pixels.
    strata
        Observed over stated error of single pixels.
    sums
        Error of the sums of boxes and rings over the quadratic sum of sigma.
    structure, spots
        What a sham test kept, lost and invented.
    """

    stream: str
    data_key: str
    verdict: str
    reasons: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    of_rows: int = 0
    pixels: int = 0
    counts: float = math.nan
    gains: Mapping[str, Measured] = field(default_factory=dict)
    flux: Measured | None = None
    strata: tuple[Stratum, ...] = ()
    sums: tuple[Sums, ...] = ()
    structure: tuple[Structure, ...] = ()
    spots: Spots | None = None
    residual: Residual | None = None

    @property
    def name(self) -> str:
        """Stream and data key."""
        return f"{self.stream}/{self.data_key}"

    @property
    def compared(self) -> bool:
        """Whether there are figures."""
        return self.flux is not None

    def to_plain(self) -> Plain:
        """Return plain JSON values, as they are stored."""
        plain: Plain = {"stream": self.stream, "data_key": self.data_key, "verdict": self.verdict}
        plain |= {"reasons": list(self.reasons), "rows": list(self.rows), "of_rows": self.of_rows}
        if self.flux is None or self.spots is None or self.residual is None:
            return plain
        spots, residual = self.spots, self.residual
        return plain | {
            "pixels": self.pixels,
            "counts": _short(self.counts),
            "gains": {name: each.to_plain() for name, each in self.gains.items()},
            "flux": self.flux.to_plain(),
            "strata": [
                [
                    *(each.low, None if math.isinf(each.high) else each.high, each.pixels),
                    *(each.ratio.to_plain(), each.sham.to_plain()),
                ]
                for each in self.strata
            ],
            "sums": [[each.name, each.ratio.to_plain(), each.sham.to_plain()] for each in self.sums],
            "structure": [[each.pixels, each.kept.to_plain(), each.noise_left.to_plain()] for each in self.structure],
            "spots": [spots.there, spots.kept.to_plain(), spots.lost, spots.invented, spots.by_noise],
            "residual": {
                "radius": [_short(each) for each in residual.radius],
                "mean": [_short(each) for each in residual.mean],
                "p": None if residual.p is None else _short(residual.p),
                "correlation": [[lag, each.to_plain()] for lag, each in residual.correlation],
            },
        }

    @classmethod
    def from_plain(cls, stored: Mapping[str, Any]) -> ImageCheck:
        """Return the check from the values of `to_plain`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If they are others.
        """
        verdict = str(stored["verdict"])
        if verdict not in VERDICTS:
            raise ValueError(f"verdict {verdict[:60]!r}")
        said: Plain = {
            "stream": str(stored["stream"]),
            "data_key": str(stored["data_key"]),
            "verdict": verdict,
            "reasons": tuple(str(each) for each in stored["reasons"]),
            "rows": tuple(int(each) for each in stored["rows"]),
            "of_rows": int(stored["of_rows"]),
        }
        if "flux" not in stored:
            return cls(**said)
        there, kept, *numbers = stored["spots"]
        lost, invented, by_noise = map(int, numbers)
        residual = stored["residual"]
        return cls(
            **said,
            pixels=int(stored["pixels"]),
            counts=float(stored["counts"]),
            gains=_measured(stored["gains"]),
            flux=Measured.from_plain(stored["flux"]),
            strata=tuple(
                Stratum(
                    float(low),
                    math.inf if high is None else float(high),
                    int(pixels),
                    Measured.from_plain(ratio),
                    Measured.from_plain(sham),
                )
                for low, high, pixels, ratio, sham in stored["strata"]
            ),
            sums=tuple(
                Sums(str(name), Measured.from_plain(ratio), Measured.from_plain(sham))
                for name, ratio, sham in stored["sums"]
            ),
            structure=tuple(
                Structure(int(pixels), Measured.from_plain(kept), Measured.from_plain(left))
                for pixels, kept, left in stored["structure"]
            ),
            spots=Spots(int(there), Measured.from_plain(kept), lost, invented, by_noise),
            residual=Residual(
                tuple(map(float, residual["radius"])),
                tuple(map(float, residual["mean"])),
                None if residual["p"] is None else float(residual["p"]),
                tuple((int(lag), Measured.from_plain(each)) for lag, each in residual["correlation"]),
            ),
        )


@dataclass(frozen=True)
class SelfCheck:
    """Self-check of a derived run: one for each image, or the reason why there is none.

    ``print`` shows it, and `images` are its figures.
    """

    images: tuple[ImageCheck, ...]
    reason: str = ""

    @property
    def verdict(self) -> str:
        """Worst verdict of the images."""
        verdicts = {each.verdict for each in self.images}
        return next((each for each in (DOUBTFUL, AGREES, NOT_TESTABLE) if each in verdicts), NOT_COMPUTED)

    def __iter__(self) -> Iterator[ImageCheck]:
        return iter(self.images)

    def __str__(self) -> str:
        from bluesky_symdenoise.selfcheck.words import lines

        return "\n".join(lines(self))

    def to_dict(self) -> Plain:
        """Return plain JSON values, as they are stored."""
        plain: Plain = {"form": FORM, "verdict": self.verdict, "images": [each.to_plain() for each in self.images]}
        return plain | ({"reason": self.reason} if self.reason else {})

    @classmethod
    def from_dict(cls, stored: Any) -> SelfCheck:
        """Return the self-check from the values of `to_dict`; one that says so if they are not understood."""
        if not isinstance(stored, Mapping):
            return cls((), "the run's stop document has none")
        try:
            if stored["form"] != FORM:
                raise ValueError(f"form {stored['form']!r}")
            return cls(tuple(map(ImageCheck.from_plain, _list(stored["images"]))), str(stored.get("reason", "")))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return cls((), f"what is stored is not understood by this version ({type(error).__name__}: {error})"[:200])


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError("images are no list")
    return value


def _measured(stored: Mapping[str, Any]) -> dict[str, Measured]:
    return {str(name): Measured.from_plain(each) for name, each in stored.items()}


def _short(value: float) -> float:
    """Return four digits of a number."""
    return float(f"{value:.4g}")
