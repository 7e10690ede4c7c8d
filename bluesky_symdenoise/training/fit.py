"""Training: maximise the likelihood of held-out counts; seeded, resumable, on the CPU or one GPU."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from bluesky_symdenoise.denoiser.features import COARSEST
from bluesky_symdenoise.denoiser.network import MULTIPLE, Architecture, PriorNet
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.training.begin import begin_from, joined
from bluesky_symdenoise.training.card import trained_card
from bluesky_symdenoise.training.curve import draw_history
from bluesky_symdenoise.training.losses import LOSSES, weighted_loss
from bluesky_symdenoise.training.pairs import Mixture, RealFrames, sample

#: Longer gradients are scaled to this norm.
GRADIENT_NORM = 1.0
#: Decay of the running average of the weights; the average is what is released.
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
    narrow_share: float = 0.0
    spotted_share: float = 0.0
    read_share: float = 0.0
    lent_share: float = 0.0
    target_counts: float = 0.0
    lent: bool = False
    leaky_from: int = -1
    bright_weight: float = 0.0
    loss: str = "counts"
    conjugate: bool = True
    bfloat16: bool = True
    threads: int = 1

    @property
    def architecture(self) -> Architecture:
        """Architecture of the network."""
        leaky_from = None if self.leaky_from < 0 else self.leaky_from
        return Architecture(self.channels, self.conjugate, lent=self.lent, leaky_from=leaky_from)

    @property
    def mixture(self) -> Mixture:
        """Mixture of the samples."""
        return Mixture(
            real=self.real_share,
            shadow=self.shadow_share,
            peakless=self.peakless_share,
            blurred=self.blurred_share,
            stopped=self.stopped_share,
            narrow=self.narrow_share,
            spotted=self.spotted_share,
            read=self.read_share,
            lent=self.lent_share,
            target_counts=self.target_counts,
            known_from=LOSSES[self.loss][0],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Return the recipe in a TOML file.

        Raises
        ------
        SymDenoiseError
            If the file is missing or is not a recipe.
        """

        def refused(rule: str) -> SymDenoiseError:
            remedy = "give a TOML file with the keys of bluesky_symdenoise/training/recipes/fast.toml"
            return SymDenoiseError(f"training recipe {path}", rule=rule, remedy=remedy)

        try:
            stored = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise refused(f"it could not be read ({error})") from error
        kinds = {each.name: each for each in fields(cls)}
        for key, value in stored.items():
            if key not in kinds:
                raise refused(f"it has no key {key!r}; it may have {', '.join(kinds)}")
            if not _fits(key, value, str(kinds[key].type)):
                raise refused(f"{key} = {value!r} cannot be used")
        if missing := [key for key in ("name", "version") if key not in stored]:
            raise refused(f"it lacks {' and '.join(missing)}")
        config = cls(**stored | {"channels": tuple(stored.get("channels", cls.channels))})
        if config.crop % MULTIPLE or config.crop < MULTIPLE:
            raise SymDenoiseError(
                f"crop = {config.crop}", rule=f"it must be a multiple of {MULTIPLE}", remedy=f"use {MULTIPLE}"
            )
        if config.loss not in LOSSES:
            raise SymDenoiseError(
                f"loss = {config.loss!r}", rule=f"it must be one of {', '.join(LOSSES)}", remedy="choose among these"
            )
        return config


def _fits(key: str, value: Any, kind: str) -> bool:
    """Return whether a value has its key's type, and is in the key's range."""
    if key == "channels":
        return (
            isinstance(value, list)
            and 0 < len(value) < COARSEST
            and all(type(each) is int and each > 0 for each in value)
        )
    if key == "name":
        return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value) is not None
    allowed = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}[kind]
    if type(value) not in allowed:
        return False
    if key.endswith("_share"):
        return 0 <= value <= 1
    least = {"steps": 1, "batch": 1, "threads": 1}.get(key, 0)
    least = -1 if key == "leaky_from" else least
    return isinstance(value, str) or value >= least


class _Samples(IterableDataset[Tensor]):
    """Batches numbered from ``first``; batch i depends on (seed, i) alone, so that a resumed run sees the same."""

    def __init__(self, config: TrainConfig, sets: Sequence[RealFrames], first: int) -> None:
        self.config, self.sets, self.first = config, sets, first

    def __iter__(self) -> Iterator[Tensor]:
        config = self.config
        for step in range(self.first, config.steps):
            rng = np.random.default_rng([config.seed, step])
            drawn = [sample(rng, self.sets, size=config.crop, mixture=config.mixture) for _ in range(config.batch)]
            yield torch.from_numpy(np.stack([each.stacked() for each in drawn]))


class Descent:
    """A network in training, and the running average of its weights, which is what is published."""

    def __init__(self, net: PriorNet, *, learning_rate: float) -> None:
        self.net = net
        self.average = PriorNet(net.architecture).to(next(net.parameters()).device)
        self.average.load_state_dict(net.state_dict())
        torch.nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-4)

    def step(self, number: int, loss: Tensor, learning_rate: float) -> float:
        """Make one step and return the length of its gradient; if that is not finite, the network is unchanged."""
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

    There is a checkpoint every minute, and when Ctrl-C stops it.

    Parameters
    ----------
    output
        Folder for the checkpoint, ``history.jsonl``, the finished weights, and beside them their record (.json), a
        model card (.md) and the loss by step (.png, from the first checkpoint on).
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
    if real and config.loss == "mse":
        raise SymDenoiseError(
            f"loss = {config.loss!r} on real frames", rule="their true rate is not known", remedy="leave the data out"
        )
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    net = PriorNet(config.architecture).to(device)
    parent = None if initial is None else load_model(initial)
    if parent is not None:
        begin_from(net, parent.net, what=str(initial))
    descent = Descent(net, learning_rate=config.learning_rate)
    checkpoint, lines = output / "checkpoint.pt", output / "history.jsonl"
    begun_with = {
        "initial": None if parent is None else parent.identity(),
        "real_sets": [frames.name for frames in real],
    }
    first, seconds = 0, 0.0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True, map_location=device)
        for what, mine in {
            "recipe": ("config", config.to_dict()),
            "weights to start from": ("initial", begun_with["initial"]),
            "real frames": ("real_sets", begun_with["real_sets"]),
        }.items():
            if stored.get(mine[0], mine[1]) != mine[1]:
                raise SymDenoiseError(
                    f"checkpoint {checkpoint}",
                    rule=f"it belongs to another {what}" if what == "recipe" else f"it began with other {what}",
                    remedy="choose another --output folder",
                )
        net.load_state_dict(stored["net"])
        descent.average.load_state_dict(stored["average"])
        descent.optimiser.load_state_dict(stored["optimiser"])
        first, seconds = stored["step"], stored["seconds"]
    # Steps after the checkpoint are repeated.
    kept = lines.read_text().splitlines()[:first] if lines.exists() else []
    lines.write_text("".join(f"{line}\n" for line in kept))

    def save(step: int, spent: float) -> None:
        state = {
            "config": config.to_dict(),
            "net": net.state_dict(),
            "average": descent.average.state_dict(),
            "optimiser": descent.optimiser.state_dict(),
            "step": step,
            "seconds": spent,
            **begun_with,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        draw_history(lines, output / f"{config.name}.png")

    loader = DataLoader(_Samples(config, real, first), batch_size=None, num_workers=1, prefetch_factor=4)
    begun = saved = time.monotonic()
    with lines.open("a") as history, _interruptible() as interrupted:
        progress = tqdm(loader, initial=first, total=config.steps, unit="step", mininterval=2)
        for step, batch in enumerate(progress, start=first):
            loss = weighted_loss(
                net,
                batch.to(device),
                bfloat16=config.bfloat16,
                kind=config.loss,
                bright_weight=config.bright_weight,
            )
            norm = descent.step(step, loss, scheduled_rate(config, step))
            history.write(json.dumps({"step": step, "loss": round(loss.item(), 6), "norm": round(norm, 4)}) + "\n")
            if interrupted() or time.monotonic() - saved > CHECKPOINT_EVERY:
                saved = time.monotonic()
                history.flush()
                save(step + 1, seconds + saved - begun)
            if interrupted():
                raise KeyboardInterrupt
    spent = seconds + time.monotonic() - begun
    save(config.steps, spent)
    training = {
        "config": config.to_dict(),
        **begun_with,
        "seconds": round(spent),
        "device": device,
        "torch": torch.__version__,
    }
    trained = descent.average
    if parent is not None:
        # Frames that borrow nothing keep the network that they had, and those that do, as well.
        trained = joined(parent.net, trained) if config.lent else joined(trained, parent.net.borrowing)
    weights = save_weights(trained, output, name=config.name, version=config.version, training=training)
    record = json.loads(weights.with_suffix(".json").read_text())
    parameters = sum(each.numel() for each in trained.parameters())
    weights.with_suffix(".md").write_text(trained_card(record, parameters=parameters))
    return weights


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C until the step has ended, so that a checkpoint can be written; a second one acts at once."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    main = threading.current_thread() is threading.main_thread()
    if main:
        signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def scheduled_rate(config: TrainConfig, step: float) -> float:
    """Return the learning rate: linear warm-up, then a half cosine to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
