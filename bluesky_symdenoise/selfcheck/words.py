"""A self-check in words: a table for a terminal, and a paragraph for the methods section of a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bluesky_symdenoise.selfcheck.values import NOT_COMPUTED, NOT_TESTABLE, ImageCheck, SelfCheck

#: What thinning judges.
CAVEAT = (
    "Held-out photons judge frames with half the exposure: the run's own frames hold twice the counts, and their "
    "errors are smaller. The sham test has the full exposure, but its truth is a denoised frame, smoother than the "
    "sample."
)


def lines(check: SelfCheck) -> Iterator[str]:
    """Yield the lines of a self-check."""
    yield f"self-check: {check.verdict}" + (f" ({check.reason})" if check.reason else "")
    for image in check:
        yield ""
        yield f"{image.name}: {image.verdict}"
        yield from (f"  {reason}" for reason in image.reasons)
        for name, value in figures(image):
            yield f"  {name:<58}{value}"
    if any(image.compared for image in check):
        yield ""
        yield CAVEAT


def figures(image: ImageCheck) -> Iterator[tuple[str, str]]:
    """Yield names and values of the figures of one image, in the words of a scientist."""
    if image.flux is None or image.spots is None:
        return
    rows = ", ".join(map(str, image.rows))
    yield "rows", f"{rows} of {image.of_rows}; {image.pixels} pixels of {image.counts:.3g} counts in the input half"
    for name, gain in image.gains.items():
        yield f"likelihood of held-out photons above {name}", f"{gain} millinat per pixel"
    yield "expected over held-out counts", str(image.flux)
    for each in image.strata:
        name = f"observed over stated error, {each.name} counts per pixel"
        yield name, f"{each.ratio}; sham test {each.sham}"
    for sums in image.sums:
        yield f"error of sums over quadratic sum of sigma, {sums.name}", f"{sums.ratio}; sham test {sums.sham}"
    for structure in image.structure:
        name = f"sham test: contrast kept of structure of {structure.pixels} pixels"
        yield name, f"{structure.kept}; noise left {structure.noise_left}"
    spots = image.spots
    yield (
        "sham test: spots",
        (
            f"{spots.there} in the truth, counts kept {spots.kept}, {spots.lost} lost, {spots.invented} invented "
            f"({spots.by_noise} in raw counts)"
        ),
    )
    if image.residual is not None:
        if image.residual.p is not None:
            yield "p of sums over rings", f"{image.residual.p:.2g}"
        for lag, correlation in image.residual.correlation:
            yield f"correlation of residuals {lag} pixels apart", str(correlation)


def methods_paragraph(start: Mapping[str, Any], check: SelfCheck) -> str:
    """Return what was done and what it was worth, in English, for the methods section of a paper.

    Parameters
    ----------
    start
        Start document of the derived run.
    """
    made = _mapping(start.get("provenance"))
    model, recipe = _mapping(made.get("model")), _mapping(made.get("recipe"))
    software = _mapping(made.get("wasAssociatedWith"))
    weights = f"{model.get('name', 'unknown')}, version {model.get('version', 'unknown')}"
    parts = [
        f"Detector frames were denoised with {software.get('name', 'bluesky-symdenoise')} "
        f"{software.get('version', '(unknown version)')} (algorithm {recipe.get('algorithm', 'unknown')}, weights "
        f"{weights}, SHA-256 {str(model.get('sha256', 'unknown'))[:16]}), which gives each pixel a Gamma posterior of "
        "its expected counts; intensities and standard deviations are its mean and spread.",
        _symmetry(str(recipe.get("symmetry", "auto"))),
        _borrowing(recipe.get("borrow")),
    ]
    for image in check:
        parts += _judged(image, alone=len(check.images) == 1)
    if check.verdict == NOT_COMPUTED:
        parts.append("The result was not checked with held-out photons.")
    parts.append(f"The recipe has the SHA-256 {str(made.get('recipe_sha256', 'unknown'))[:16]}.")
    return " ".join(part for part in parts if part)


def _symmetry(asked: str) -> str:
    if asked == "auto":
        return "Point symmetry was used where pair tests of the counts did not contradict it."
    if asked == "1":
        return "No symmetry was assumed."
    return f"The point group {asked} was used where pair tests of the counts did not contradict it."


def _borrowing(stored: Any) -> str:
    side, _, reach = str(stored or "").partition(":")
    if side not in ("past", "both"):
        return "Each frame was denoised on its own, without photons of other frames."
    where = "before it" if side == "past" else "before and after it"
    return (
        f"Each frame also used photons of up to {reach} neighbouring frames {where}, where tests found them alike; "
        "errors of neighbouring frames are therefore correlated."
    )


def _judged(image: ImageCheck, *, alone: bool) -> Sequence[str]:
    who = "" if alone else f" for {image.name}"
    if image.flux is None or image.spots is None:
        why = "; ".join(image.reasons)
        return [f"The result could not be tested with held-out photons{who} ({why})."] if why else []
    rows = f"{len(image.rows)} of {image.of_rows} frames" if image.of_rows > 1 else "the frame"
    gains = [f"{gain} millinat per pixel more likely than by {name}" for name, gain in image.gains.items() if gain]
    said = [
        f"To judge the result{who}, half of the photons of {rows} were held out at random (binomial thinning), and "
        f"predicted from the other half, {image.counts:.2g} counts per pixel: they were {_joined(gains)}, and the sum "
        f"of all pixels was {image.flux} of the held-out counts."
        if gains
        else ""
    ]
    ratios = [f"{each.ratio} at {each.name} counts per pixel" for each in image.strata if each.ratio]
    if ratios:
        said.append(f"Observed errors were {_joined(ratios)} times the stated ones.")
    else:
        said.append(f"Stated errors of single pixels were {NOT_TESTABLE} with so few held-out photons.")
    shams = [f"{each.sham} at {each.name} counts per pixel" for each in image.strata if each.sham]
    if shams:
        said.append(
            "In a sham test, in which the denoised frame was drawn anew with Poisson noise and denoised again, errors "
            f"were {_joined(shams)} times the stated ones."
        )
    sums = [f"{each.sham} for {each.name}" for each in image.sums if each.sham]
    if sums:
        said.append(
            "Errors of neighbouring pixels are correlated: errors of sums exceeded the quadratic sum of the stated "
            f"errors by factors of {_joined(sums)}."
        )
    if image.spots.there or image.spots.invented:
        kept = f" and kept {image.spots.kept} of their counts" if image.spots.kept else ""
        said.append(
            f"Of {image.spots.there} spots the sham test lost {image.spots.lost}{kept}; it invented "
            f"{image.spots.invented}."
        )
    said += [f"The check raised a doubt: {reason}." for reason in image.reasons]
    return said


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
