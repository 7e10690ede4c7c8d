"""Poisson maximum likelihood: the fit to raw counts that other estimates are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import i0e, i1e

from bluesky_symdenoise.analysis.annulus import Values

#: Function from the parameters to the rate (n,) and its derivatives (parameters, n).
Model = Callable[[Values], tuple[Values, Values]]

ITERATIONS = 100

#: Prior precision 1/sigma^2 of each parameter of a `peak_model` about 0; only the background's curvature has one. A
#: power law with exponent n on top of a constant twice as large has a curvature of up to 0.5 n^2/4.
PRECISION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Fit:
    """Parameters of largest likelihood and the inverse of their Fisher information."""

    parameters: Values
    covariance: NDArray[np.float64]


def poisson_fit(
    model: Model,
    counts: Values,
    exposure: Values,
    start: Values,
    *,
    precision: Values,
    background: Values | None = None,
) -> Fit | None:
    """Maximise the likelihood of counts ~ Poisson(exposure * rate + background), by damped Fisher scoring.

    Parameters
    ----------
    counts, exposure
        (n,) or sums of them, exposure above 0; expected counts, as of a denoised frame, are accepted too.
    precision
        (parameters,) 1/sigma^2 of a normal prior about 0, 0 for no prior.
    background
        (n,) known expected counts; None for none.

    Returns
    -------
    Fit or None
        None if no maximum is found from `start`, or the information is singular.
    """
    known = np.zeros_like(exposure) if background is None else background / exposure

    def at(parameters: Values) -> tuple[Values, Values, float]:
        with np.errstate(all="ignore"):
            rate, jacobian = model(parameters)
            rate = rate + known
            usable = bool((rate > 0).all() and np.isfinite(jacobian).all())
            unlikely = float(exposure @ rate - counts @ np.log(rate) + precision @ parameters**2 / 2)
            return rate, jacobian, unlikely if usable else np.inf

    parameters, damping = start, 1e-3
    rate, jacobian, misfit = at(start)
    if not np.isfinite(misfit):
        return None
    for _ in range(ITERATIONS):
        gradient = jacobian @ (counts / rate - exposure) - precision * parameters
        information = (jacobian * (exposure / rate)) @ jacobian.T + np.diag(precision)
        try:
            step = np.linalg.solve(information + damping * np.diag(np.diag(information) + 1e-300), gradient)
        except np.linalg.LinAlgError:
            return None
        tried = at(parameters + step)
        if tried[2] <= misfit:
            small = misfit - tried[2] < 1e-7 and gradient @ step < 1e-5
            parameters, (rate, jacobian, misfit) = parameters + step, tried
            damping = max(damping / 8, 1e-9)
            if small:
                break
        elif damping > 1e9:
            break
        else:
            damping *= 8
    information = (jacobian * (exposure / rate)) @ jacobian.T + np.diag(precision)
    if not np.isfinite(information).all() or not np.linalg.cond(information) < 1e14:
        return None
    return Fit(parameters, np.asarray(np.linalg.inv(information), np.float64))


def peak_model(radius: Values, middle: float, *, blur: float = 0.0) -> Model:
    """Return a Gaussian on an approximate power law: level at `middle`, exponent, area, position, log sigma.

    The sixth parameter is the background's curvature, that of log rate over log radius. Lengths are in pixels.

    Parameters
    ----------
    blur
        Variance that is added to that of the Gaussian.
    """
    distance = np.log(np.maximum(radius, 0.5) / middle)

    def model(parameters: Values) -> tuple[Values, Values]:
        level, exponent, area, position, log_width, curvature = parameters
        power = np.exp(np.clip(exponent * distance + curvature * distance**2, -50, 50))
        variance = np.exp(2 * np.clip(log_width, -5, 12))
        width = np.sqrt(variance + blur)
        u = (radius - position) / width
        bell = np.exp(-np.minimum(u**2, 1400) / 2) / (width * np.sqrt(2 * np.pi))
        derivatives = [
            power,
            level * power * distance,
            bell,
            area * bell * u / width,
            area * bell * (u**2 - 1) * variance / width**2,
            level * power * distance**2,
        ]
        return level * power + area * bell, np.stack(derivatives)

    return model


def ring_model(radius: Values, azimuth: Values, middle: float) -> Model:
    """Return `peak_model` with a texture: the Gaussian times exp(p cos 2phi + q sin 2phi) / I0, p and q last.

    I0 is the Bessel function of sqrt(p^2 + q^2), which keeps the area that of the mean over azimuth.
    """
    cosine, sine = np.cos(2 * azimuth), np.sin(2 * azimuth)
    radial = peak_model(radius, middle)

    def model(parameters: Values) -> tuple[Values, Values]:
        _, derivatives = radial(parameters[:6])
        p, q = parameters[6:]
        strength = np.hypot(p, q)
        texture = np.exp(p * cosine + q * sine - strength) / i0e(strength)
        derivatives[2:5] *= texture
        peak = parameters[2] * derivatives[2]
        # d log I0 / dp = I1/I0 p/strength, which is p/2 for small strength.
        mean = i1e(strength) / i0e(strength) / strength if strength > 1e-6 else 0.5
        rate = parameters[0] * derivatives[0] + peak
        return rate, np.concatenate([derivatives, [peak * (cosine - mean * p), peak * (sine - mean * q)]])

    return model
