"""Training: maximise the likelihood of held-out counts; seeded, resumable, on the CPU or one GPU."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from bluesky_symdenoise.denoiser.network import MULTIPLE, Architecture, PriorNet, posterior
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.training.pairs import RealFrames, sample

#: A step whose gradient is longer than this is shortened.
GRADIENT_NORM = 1.0
#: Decay of the running average of the weights, which is what gets shipped.
AVERAGE_DECAY = 0.998
#: Seconds between checkpoints.
CHECKPOINT_EVERY = 60.0


@dataclass(frozen=True)
class TrainConfig:
    """A training recipe: the same values and seed give the same weights on the same machine and thread count."""

    name: str
    version: str
    seed: int = 0
    channels: tuple[int, ...] = (32, 48, 64, 96, 96)
    steps: int = 10_000
    batch: int = 12
    crop: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    real_share: float = 0.4
    shadow_share: float = 0.0
    peakless_share: float = 0.0
    blurred_share: float = 0.0
    stopped_share: float = 0.0
    bright_weight: float = 0.0
    bfloat16: bool = True
    threads: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """The recipe in a TOML file.

        Raises
        ------
        SymDenoiseError
            If the file is missing or no recipe.
        """
        try:
            stored = tomllib.loads(path.read_text())
            config = cls(**stored | {"channels": tuple(stored.get("channels", cls.channels))})
        except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
            raise SymDenoiseError(
                f"training recipe {path}",
                rule=f"it could not be read ({error})",
                remedy="give a TOML file with the keys of bluesky_symdenoise/training/recipes/fast.toml",
            ) from error
        if config.crop % MULTIPLE or config.crop < MULTIPLE:
            raise SymDenoiseError(
                f"crop = {config.crop}", rule=f"it must be a multiple of {MULTIPLE}", remedy=f"use {MULTIPLE}"
            )
        return config


class _Samples(IterableDataset[Tensor]):
    """Batches numbered from ``first``; batch i depends on (seed, i) alone, so that a resumed run sees the same."""

    def __init__(self, config: TrainConfig, sets: Sequence[RealFrames], first: int) -> None:
        self.config, self.sets, self.first = config, sets, first

    def __iter__(self) -> Iterator[Tensor]:
        config = self.config
        for step in range(self.first, config.steps):
            rng = np.random.default_rng([config.seed, step])
            yield torch.from_numpy(
                np.stack(
                    [
                        sample(
                            rng,
                            self.sets,
                            size=config.crop,
                            real_share=config.real_share,
                            shadow_share=config.shadow_share,
                            peakless_share=config.peakless_share,
                            blurred_share=config.blurred_share,
                            stopped_share=config.stopped_share,
                        ).stacked()
                        for _ in range(config.batch)
                    ]
                )
            )


def held_out_loss(net: PriorNet, batch: Tensor, *, bfloat16: bool, bright_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Negative-binomial log-likelihood of the target per pixel, each sample's mean; and the weights of the samples.

    With the posterior Gamma(shape a, rate b) and a target t at exposure e:
    -log L = log G(a) - log G(t + a) + log G(t + 1) - a log(b / (b + e)) - t log(e / (b + e)), in float64.

    Parameters
    ----------
    batch
        (sample, 6, y, x) as stacked by `bluesky_symdenoise.training.pairs.Sample`.
    bright_weight
        Exponent by which pixels weigh more in their sample's mean whose surroundings have more counts than the
        sample: the best answer stays what it is, as the weight depends on what the network sees and not on the target.
    """
    counts, exposure, mate_counts, mate_exposure, target, target_exposure = batch.split(1, dim=1)  # type: ignore[no-untyped-call]
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        shape, rate = posterior(net, counts, exposure, mate_counts, mate_exposure)
    a, b, t, e = shape.double(), rate.double(), target.double(), target_exposure.double()
    seen = e > 0
    safe = torch.where(seen, e, torch.ones_like(e))
    nll = (
        torch.lgamma(a)
        - torch.lgamma(t + a)
        + torch.lgamma(t + 1)
        + a * torch.log1p(safe / b)
        + t * torch.log1p(b / safe)
    )
    pixels = seen * _brightness(counts, exposure) ** bright_weight if bright_weight else seen.double()
    per_sample = (nll * pixels).sum(dim=(1, 2, 3)) / pixels.sum(dim=(1, 2, 3)).clamp(min=1)
    # Bright samples carry gradients of the square root of their counts: weighted so that they don't drown the others.
    weights = (1 + counts.double().mean(dim=(1, 2, 3)) / 10) ** -0.3
    return per_sample, weights


def _brightness(counts: Tensor, exposure: Tensor) -> Tensor:
    """Mean rate of a pixel and its neighbours over that of its sample, from 1 to 1000; darker ones count as 1."""
    around = [F.avg_pool2d(image, 3, stride=1, padding=1) for image in (counts, exposure)]
    overall = [image.mean(dim=(1, 2, 3), keepdim=True) for image in (counts, exposure)]
    ratio = around[0] * overall[1] / (around[1] * overall[0]).clamp(min=1e-9)
    return torch.where(around[1] > 0, ratio, 1.0).clamp(1, 1000).double()


def weighted_loss(net: PriorNet, batch: Tensor, *, bfloat16: bool, bright_weight: float = 0.0) -> Tensor:
    """The mean of `held_out_loss` over a batch, with its weights."""
    per_sample, weights = held_out_loss(net, batch, bfloat16=bfloat16, bright_weight=bright_weight)
    return (per_sample * weights).mean()


class Descent:
    """A network on its way down, and the running average of its weights, which is what gets shipped."""

    def __init__(self, net: PriorNet, *, learning_rate: float) -> None:
        self.net = net
        self.average = PriorNet(net.architecture).to(next(net.parameters()).device)
        self.average.load_state_dict(net.state_dict())
        torch.nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-4)

    def step(self, number: int, loss: Tensor, learning_rate: float) -> float:
        """One step, and the length of its gradient; where that is not finite, the network stays as it is."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), GRADIENT_NORM)
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimiser.step()
        decay = min(AVERAGE_DECAY, (number + 1) / (number + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return norm.item()


def fit(
    config: TrainConfig,
    *,
    output: Path,
    real: Sequence[RealFrames] = (),
    initial: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train the network that a recipe describes; continues from ``output/checkpoint.pt`` if it is there.

    Parameters
    ----------
    output
        Folder for the checkpoint, ``history.jsonl`` and the finished weights.
    real
        Real frames to mix in; none for simulations only.
    initial
        Weights to start from, of the same architecture; None starts from random ones.

    Returns
    -------
    Path
        The finished weights, safetensors.
    """
    from bluesky_symdenoise.denoiser.weights import load_model, save_weights

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SymDenoiseError(f"device {device!r}", rule="torch sees no GPU", remedy="use --device cpu")
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    net = PriorNet(Architecture(config.channels)).to(device)
    parent = None if initial is None else load_model(initial)
    if parent is not None:
        if parent.net.architecture != net.architecture:
            raise SymDenoiseError(
                f"initial weights {initial}",
                rule=f"they have channels {parent.net.architecture.channels}",
                remedy="start from weights of the recipe's architecture",
            )
        net.load_state_dict(parent.net.state_dict())
    descent = Descent(net, learning_rate=config.learning_rate)
    checkpoint = output / "checkpoint.pt"
    first, seconds = 0, 0.0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True, map_location=device)
        if stored["config"] != config.to_dict():
            raise SymDenoiseError(
                f"checkpoint {checkpoint}",
                rule="it belongs to another recipe",
                remedy="choose another --output folder",
            )
        net.load_state_dict(stored["net"])
        descent.average.load_state_dict(stored["average"])
        descent.optimiser.load_state_dict(stored["optimiser"])
        first, seconds = stored["step"], stored["seconds"]

    def save(step: int, spent: float) -> None:
        state = {
            "config": config.to_dict(),
            "net": net.state_dict(),
            "average": descent.average.state_dict(),
            "optimiser": descent.optimiser.state_dict(),
            "step": step,
            "seconds": spent,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    loader = DataLoader(_Samples(config, real, first), batch_size=None, num_workers=1, prefetch_factor=4)
    begun = saved = time.monotonic()
    with (output / "history.jsonl").open("a") as history:
        progress = tqdm(loader, initial=first, total=config.steps, unit="step", mininterval=2)
        for step, batch in enumerate(progress, start=first):
            loss = weighted_loss(net, batch.to(device), bfloat16=config.bfloat16, bright_weight=config.bright_weight)
            norm = descent.step(step, loss, scheduled_rate(config, step))
            history.write(json.dumps({"step": step, "loss": round(loss.item(), 6), "norm": round(norm, 4)}) + "\n")
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                saved = time.monotonic()
                history.flush()
                save(step + 1, seconds + saved - begun)
    spent = seconds + time.monotonic() - begun
    save(config.steps, spent)
    training = {
        "config": config.to_dict(),
        "initial": None if parent is None else parent.identity(),
        "seconds": round(spent),
        "device": device,
        "real_sets": [frames.name for frames in real],
        "torch": torch.__version__,
    }
    return save_weights(descent.average, output, name=config.name, version=config.version, training=training)


def scheduled_rate(config: TrainConfig, step: float) -> float:
    """Linear warm-up, then a half cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
