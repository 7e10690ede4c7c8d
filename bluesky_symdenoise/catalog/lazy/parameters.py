"""Parameters of the data source of an array that is computed on read, parsed and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.denoiser.released import checked_algorithm
from bluesky_symdenoise.derived.decision import Decision
from bluesky_symdenoise.derived.lending import Window
from bluesky_symdenoise.derived.row import Row, denoised_row, empty_row
from bluesky_symdenoise.derived.stated_readout import from_recipe
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.checks import MAX_PIXELS
from bluesky_symdenoise.files.formats import by_mimetype, stored_mimetypes
from bluesky_symdenoise.files.source import Stamp
from bluesky_symdenoise.physics.counts.verdict import checked_noise
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.neighbours.scan import MOST_AXES, Scan
from bluesky_symdenoise.physics.neighbours.window import Borrow, Lender
from bluesky_symdenoise.physics.symmetry import Symmetry, checked_point_group, checked_symmetry
from bluesky_symdenoise.recipe import OPTIONAL, Recipe

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser

#: Mimetype of data sources whose pixels are computed on reading.
MIMETYPE = "application/x-symdenoise"
#: Roles of its assets: the raw files in order, and arrays of the recipe, one ``.npy`` file each.
SOURCE, MASK, EXPOSURE = "source", "mask", "exposure"
#: The two arrays of one image.
QUANTITIES = ("intensity", "sigma")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_MAX_THREADS = 256
#: Most bytes of raw frames of the rows that one row may borrow from.
_MAX_LENT = 2**32
#: Most rows of a stream whose rows borrow.
_MAX_ROWS = 2**24
#: Parameters that runs without borrowing do not have.
_BORROWING = ("rows", "scan")


@dataclass(frozen=True)
class LazyImage:
    """Parameters of the data source of one image, intensity or sigma.

    Attributes
    ----------
    quantity
        ``intensity`` or ``sigma``.
    recipe
        Recipe of the run.
    model
        Name of the model whose sha256 is the recipe's.
    device, threads
        ``cpu`` or ``auto``, and CPU threads: the same bits need the same.
    point_group, beam_center
        Symmetry resolved with the first frame that has counts.
    first_row
        Row of that frame; the symmetry of an earlier row depends on its own frame and the recipe.
    mimetype, shape, dtype, dataset
        Properties of the raw image.
    stamps
        (ns, bytes) of each raw file when the run was registered.
    rows, scan
        Number of rows of the stream, and the scan whose points they are, by which rows borrow from others; None if
        none may, and `scan` also where rows go by number.
    """

    quantity: str
    recipe: Recipe
    model: str
    device: str
    threads: int
    point_group: str
    beam_center: tuple[float, float] | None
    first_row: int
    mimetype: str
    shape: tuple[int, ...]
    dtype: str
    dataset: str | None
    stamps: tuple[Stamp, ...]
    rows: int | None = None
    scan: Scan | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = asdict(self) | {"recipe": self.recipe.to_dict(), "stamps": [list(each) for each in self.stamps]}
        if self.scan is not None:
            plain["scan"] = [list(self.scan.shape), list(self.scan.snaking), self.scan.repeats]
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
        # Parameters stored before rows could borrow must stay as they are.
        return {key: value for key, value in lists.items() if value is not None or key not in _BORROWING}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> LazyImage:
        """Make the parameters from the values of `to_dict`, which are not trusted.

        Raises
        ------
        SymDenoiseError
            If a value is not valid.
        """
        names = {field.name for field in fields(cls)}
        if set(stored) | set(_BORROWING) != names:
            wrong = sorted(set(stored) ^ names)
            raise _refused(f"the names {', '.join(repr(name)[:40] for name in wrong[:3])} are missing or unknown")
        recipe = _recipe(stored["recipe"])
        for name, good in (
            ("quantity", QUANTITIES),
            ("device", ("cpu", "auto")),
            ("mimetype", stored_mimetypes()),
        ):
            if stored[name] not in good:
                raise _refused(f"{name} must be one of {', '.join(good)}")
        checked_point_group(_named(stored["point_group"]))
        model, dataset = stored["model"], stored["dataset"]
        if not (isinstance(model, str) and _NAME.fullmatch(model)):
            raise _refused("model must be a name")
        of = by_mimetype(stored["mimetype"])
        if dataset is not None if of is None or not of.has_datasets else not (isinstance(dataset, str) and dataset):
            raise _refused("dataset must be a name for HDF5, and null for others")
        if not (_whole(stored["threads"], 1, _MAX_THREADS) and _whole(stored["first_row"], 0, 2**53)):
            raise _refused(f"threads must be from 1 to {_MAX_THREADS}, and first_row not negative")
        shape, stamps = stored["shape"], stored["stamps"]
        if not (
            isinstance(shape, list)
            and 3 <= len(shape) <= 4
            and all(_whole(size, 1, 2**53) for size in shape)
            and math.prod(shape[1:]) <= MAX_PIXELS
        ):
            raise _refused(f"shape must be (row, ..., y, x) with at most {MAX_PIXELS} pixels a row")
        if not (
            isinstance(stamps, list) and all(_pair(each) and all(_whole(v, 0, 2**63) for v in each) for each in stamps)
        ):
            raise _refused("stamps must be pairs of whole numbers")
        rows = stored.get("rows")
        if (rows is not None) != (recipe.borrow is not None) or not (rows is None or _whole(rows, 1, _MAX_ROWS)):
            raise _refused(f"rows must be their number, at most {_MAX_ROWS}, where they borrow, and absent where not")
        dtype = _dtype(stored["dtype"])
        if recipe.borrow is not None:
            lent = 2 * Borrow.from_text(recipe.borrow).reach * math.prod(shape[1:]) * np.dtype(dtype).itemsize
            if lent > _MAX_LENT:
                raise SymDenoiseError(
                    f"borrow {recipe.borrow} of frames of {lent // 2**20} MiB",
                    rule=f"a server reads at most {_MAX_LENT // 2**20} MiB of neighbours for a frame",
                    remedy="give a smaller borrow_reach, or use replay",
                )
        return cls(
            **{
                **stored,
                "recipe": recipe,
                "beam_center": _center(stored["beam_center"]),
                "shape": tuple(shape),
                "dtype": dtype,
                "stamps": tuple((each[0], each[1]) for each in stamps),
                "scan": _scan(stored.get("scan")),
            }
        )

    @property
    def symmetry(self) -> Symmetry:
        """Symmetry resolved for rows from `first_row` on."""
        return Symmetry(self.point_group, self.beam_center)

    def lenders(self, row: int) -> tuple[Lender, ...]:
        """Return the rows with frames that may lend photons to a row, nearest first."""
        if self.recipe.borrow is None or self.rows is None or row >= self.rows:
            return ()
        window = Window(Borrow.from_text(self.recipe.borrow), self.rows, self.scan)
        return tuple(lender for lender in window.lenders(row) if lender.row < self.shape[0])

    def row(
        self,
        denoiser: Denoiser,
        image: Any,
        row: int,
        *,
        mask: Any,
        exposure: Any,
        readout: Readout | None = None,
        lent: Sequence[Lent] = (),
    ) -> Row:
        """Return what the derived run holds for one raw frame: NaN for one that cannot be denoised.

        Parameters
        ----------
        lent
            Frames of the `lenders` of the row.
        """
        try:
            symmetry = self.symmetry
            if row < self.first_row:
                symmetry = Decision(noise=self.recipe.noise).of(
                    denoiser,
                    image,
                    mask=mask,
                    exposure=exposure,
                    symmetry=self.recipe.symmetry,
                    center=self.recipe.beam_center,
                    readout=readout,
                )
            return denoised_row(
                denoiser,
                self.recipe,
                image,
                mask=mask,
                exposure=exposure,
                symmetry=symmetry,
                readout=readout,
                lent=lent,
            )
        except SymDenoiseError:
            return empty_row(self.shape[1:])


def _refused(rule: str) -> SymDenoiseError:
    return SymDenoiseError("parameters of the lazy array", rule=rule, remedy="register the run again")


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _center(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not (_pair(value) and all(isinstance(v, int | float) and math.isfinite(v) and abs(v) < 2**31 for v in value)):
        raise _refused("a beam centre is two finite numbers")
    return float(value[0]), float(value[1])


def _dtype(value: Any) -> str:
    try:
        dtype = np.dtype(value) if isinstance(value, str) and len(value) <= 4 else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "iuf":
        raise _refused("dtype must be of integers or floats")
    return str(value)


def _scan(value: Any) -> Scan | None:
    if value is None:
        return None
    match value:
        case [[*shape], [*snaking], repeats] if (
            0 < len(shape) == len(snaking) <= MOST_AXES
            and all(_whole(size, 1, 2**53) for size in (*shape, repeats))
            and all(isinstance(each, bool) for each in snaking)
        ):
            return Scan(tuple(shape), tuple(snaking), repeats)
    raise _refused("a scan has the length of each axis, whether it snakes, and the rows of each point")


def _borrow(value: Any) -> None:
    try:
        same = isinstance(value, str) and Borrow.from_text(value).to_text() == value
    except ValueError:
        same = False
    if not same:
        raise _refused("recipe has an unknown borrow")


def _named(symbol: Any) -> str:
    if not isinstance(symbol, str):
        raise _refused("a point group must be a name")
    return symbol


def _recipe(stored: Any) -> Recipe:
    # The server reads pixels only: it cannot look up metadata of a run or choose frames, so the recipe has neither; an
    # analysis changes columns and no pixels.
    names = {field.name for field in fields(Recipe)} - OPTIONAL
    if not (isinstance(stored, Mapping) and isinstance(stored.get("algorithm"), str)):
        raise _refused("recipe must have the entries of a recipe")
    # First, because a newer version's recipe may have other entries.
    checked_algorithm(stored["algorithm"])
    if set(stored) - {"analysis", "noise", "readout", "borrow"} != names:
        raise _refused("recipe must have the entries of a recipe")
    shas = [stored["model_sha256"], *(stored[name] for name in ("mask_sha256", "exposure_sha256") if stored[name])]
    if not all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in shas):
        raise _refused("recipe has a value that is not a sha256")
    checked_symmetry(_named(stored["symmetry"]))
    rounding = stored["rounding"]
    if not (isinstance(rounding, float) and 2**-20 <= rounding <= 1) or not _whole(stored["sigma_bits"], 1, 23):
        raise _refused("recipe has an unknown rounding")
    for name in ("streams", "data_keys", "analysis", "readout"):
        if stored.get(name) is not None and not (
            isinstance(stored[name], list) and all(isinstance(each, str) for each in stored[name])
        ):
            raise _refused(f"{name} must be a list of names")
    checked_noise(stored.get("noise"))
    if stored.get("borrow") is not None:
        _borrow(stored["borrow"])
    if stored.get("readout") is not None:
        # Its numbers are checked here, its maps when they are read.
        from_recipe(stored["readout"], lambda _name, _sha256: np.ones((1, 1)))
    _center(stored["beam_center"])
    return Recipe.from_dict(dict(stored))
