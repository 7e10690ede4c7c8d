"""Tuning of a model to a user's own frames; scores on frames that it was not tuned on show whether it helped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.identity import sha256_of
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.network import PriorNet, posterior
from bluesky_symdenoise.denoiser.weights import Model, decode, encode
from bluesky_symdenoise.training.fit import Descent, TrainConfig, scheduled_rate
from bluesky_symdenoise.training.losses import weighted_loss
from bluesky_symdenoise.training.pairs import Sample, simulated_sample
from bluesky_symdenoise.training.scores import LEVELS, Paired, false_features, held_out_losses
from bluesky_symdenoise.training.shots import Shot, Split, crops, split, with_repeats

#: Settings for tuning: few, small steps; a third of the samples is simulated, many of those without peaks.
TUNING = TrainConfig(
    name="",
    version="1",
    steps=500,
    batch=9,
    crop=128,
    learning_rate=2e-4,
    warmup=25,
    real_share=0.67,
    shadow_share=0.2,
    peakless_share=0.6,
)
#: Weight of the divergence from the parent on simulated frames, relative to the held-out likelihood, both in nats.
ANCHOR = 5.0
#: Frames from which the crops of a batch are drawn, and steps until other frames are taken: folding a large one is
#: slow.
FRAMES, STEPS_PER_FRAMES = 3, 4
#: Fraction of the time by which the steps may be late before the learning rate follows the clock.
LATE = 0.1
#: Number of batches prepared in advance.
AHEAD = 3


@dataclass(frozen=True, eq=False)
class Tuned:
    """A tuned model with its figures.

    Attributes
    ----------
    model, content
        The network with its identity, and the same network as the bytes of a safetensors file.
    loss
        Held-out negative log-likelihood, nat per pixel, on frames that were not tuned on.
    features
        False features per megapixel of simulated frames without peaks.
    steps, seconds
        Steps and seconds of the tuning itself.
    in_time
        Whether all steps were done in the given time: if not, another run need not give the same weights.
    repeats
        How many frames to tune on had a repeat of their scene.
    """

    model: Model
    content: bytes
    loss: Paired
    features: Paired
    steps: int
    seconds: float
    in_time: bool
    repeats: int

    @property
    def accepted(self) -> bool:
        """Whether it predicts held-out counts better than its parent, beyond noise, and invents no more."""
        return self.loss.better and not self.features.worse

    def figures(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "held_out_loss": self.loss.to_dict(),
            "false_features_per_megapixel": self.features.to_dict(),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "all_steps": self.in_time,
            "repeats": self.repeats,
        }


def tune(
    parent: Denoiser,
    shots: Sequence[Shot],
    held_out: Sequence[Shot],
    *,
    config: TrainConfig = TUNING,
    seconds: float,
    progress: bool = True,
) -> Tuned:
    """Tune a copy of the parent's network to shots, and compare the two on shots that it was not tuned on.

    Parameters
    ----------
    shots, held_out
        Shots to tune on and to score on, two at least.
    config
        Tuning recipe; its name is the tuned model's. Seeded: the same frames and threads give the same weights, unless
        time was short.
    seconds
        Time for everything; the number of steps is reduced if it would take longer.
    """
    begun = time.monotonic()
    levels = sorted({*LEVELS, float(np.clip(np.mean([shot.mean for shot in held_out]), 0.02, 100.0))})

    def figures(denoiser: Denoiser) -> tuple[Any, Any]:
        return (
            held_out_losses(denoiser, held_out, seed=config.seed),
            false_features(denoiser, seed=config.seed, levels=levels),
        )

    of_parent = figures(parent)
    scoring = time.monotonic() - begun
    paired = with_repeats(shots)
    repeats = sum(shot.target is not None for shot in paired) - sum(shot.target is not None for shot in shots)
    net = PriorNet(parent.model.net.architecture).to(parent.device)
    net.load_state_dict(parent.model.net.state_dict())
    # Copy the network: the parent's own belongs to its denoiser.
    anchor = PriorNet(net.architecture).to(parent.device).requires_grad_(False)
    anchor.load_state_dict(net.state_dict())
    torch.nn.utils.convert_conv2d_weight_memory_format(anchor, torch.channels_last)
    descent = Descent(net, learning_rate=config.learning_rate)
    torch.set_num_threads(parent.threads)
    started = time.monotonic()
    # Reserve twice the time that scoring the parent took, as the machine may be busier when the tuned model is scored.
    allowed = max(0.0, seconds - (started - begun) - 2 * scoring)
    steps, in_time = 0, True
    # Without a progress bar, `tqdm.auto` would still print a hint about missing widgets.
    tqdm = import_module("tqdm.auto" if progress else "tqdm").tqdm
    with tqdm(total=config.steps, unit="step", desc="tuning", mininterval=1, disable=not progress) as bar:
        for batch in _prefetched(config, paired):
            past = (time.monotonic() - started) / allowed if allowed else 1.0
            if past >= 1:
                break
            # If the steps are late, the learning rate falls with time, otherwise with the number of steps.
            late = (past - LATE) * config.steps
            in_time = in_time and late <= steps
            loss = _loss(net, anchor, batch.to(parent.device), _real(config), bfloat16=config.bfloat16)
            descent.step(steps, loss, scheduled_rate(config, max(steps, late)))
            steps += 1
            bar.update()
    spent = time.monotonic() - started
    content = encode(descent.average)
    model = Model(decode(content), config.name, config.version, sha256_of(content))
    tuned = Denoiser(model, device=str(parent.device), threads=parent.threads)
    of_tuned = figures(tuned)
    return Tuned(
        model=model,
        content=content,
        loss=Paired.of(of_parent[0], of_tuned[0]),
        features=Paired.of(of_parent[1], of_tuned[1]),
        steps=steps,
        seconds=spent,
        in_time=in_time and steps == config.steps,
        repeats=repeats,
    )


def halves(shots: Sequence[Shot], *, held_out: int, seed: int) -> tuple[list[Shot], list[Shot]]:
    """Return the shots to tune on and ``held_out`` others to score on, drawn at random, each in their order."""
    drawn = set(np.random.default_rng([seed, len(shots)]).permutation(len(shots))[:held_out].tolist())
    return [s for i, s in enumerate(shots) if i not in drawn], [s for i, s in enumerate(shots) if i in drawn]


def _real(config: TrainConfig) -> int:
    return round(config.batch * config.real_share)


def _loss(net: PriorNet, anchor: PriorNet, batch: Tensor, real: int, *, bfloat16: bool) -> Tensor:
    """Return held-out likelihoods of the first `real` samples; for others, the posterior's change from the parent's."""
    loss = weighted_loss(net, batch[:real], bfloat16=bfloat16)
    if real == len(batch):
        return loss
    counts, exposure, mate_counts, mate_exposure, *_ = batch[real:].split(1, dim=1)  # type: ignore[no-untyped-call]
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        a, b = (each.double() for each in posterior(net, counts, exposure, mate_counts, mate_exposure))
        with torch.no_grad():
            a0, b0 = (each.double() for each in posterior(anchor, counts, exposure, mate_counts, mate_exposure))
    # Kullback-Leibler divergence of Gamma(a, b) from Gamma(a0, b0).
    divergence = (
        (a0 - a) * torch.digamma(a0) - torch.lgamma(a0) + torch.lgamma(a) + a * torch.log(b0 / b) + a0 * (b - b0) / b0
    )
    known = (exposure + mate_exposure) > 0
    return loss + ANCHOR * (divergence * known).sum() / known.sum().clamp(min=1)


class _Batches:
    """The batch of each step, asked for in order; it depends on the seed and the step alone."""

    def __init__(self, config: TrainConfig, shots: Sequence[Shot]) -> None:
        self._config, self._shots = config, shots
        self._frames: list[Split] = []

    def __call__(self, step: int) -> Tensor:
        config, real = self._config, _real(self._config)
        rng = np.random.default_rng([config.seed, step])
        if step % STEPS_PER_FRAMES == 0:
            chosen = rng.integers(len(self._shots), size=min(FRAMES, real))
            self._frames = [split(rng, self._shots[index]) for index in chosen]
        samples: list[Sample] = []
        for index, prepared in enumerate(self._frames):
            share = (real + index) // len(self._frames)
            samples += crops(rng, prepared, size=config.crop, number=share)
        while len(samples) < config.batch:
            samples.append(simulated_sample(rng, config.crop, config.mixture))
        return torch.from_numpy(np.stack([sample.stacked() for sample in samples]))


def _prefetched(config: TrainConfig, shots: Sequence[Shot]) -> Iterator[Tensor]:
    """Yield all batches in order, made in another thread during computation: a fork would copy a server's locks."""
    batches = _Batches(config, shots)
    with ThreadPoolExecutor(1, thread_name_prefix="symdenoise-batches") as pool:
        waiting: deque[Future[Tensor]] = deque()
        try:
            for step in range(config.steps + AHEAD):
                if step < config.steps:
                    waiting.append(pool.submit(batches, step))
                if step >= AHEAD:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
