"""What a frame costs at least on a device: bytes and products of the network's layers, and the device's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise.bench.computing.against import Worker
from bluesky_symdenoise.bench.load import replay
from bluesky_symdenoise.bench.load.live import Row
from bluesky_symdenoise.bench.load.server import served

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.network import Architecture

#: Bytes of a value by dtype.
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Layer:
    """A convolution of the network.

    Attributes
    ----------
    name
        Its place in the network.
    inside, outside
        Channels.
    taps
        Products per pair of channels and pixel that comes out.
    per_pixel
        Pixels that come out, per pixel of the frame.
    read
        Values that it reads, per pixel of the frame.
    """

    name: str
    inside: int
    outside: int
    taps: int
    per_pixel: float
    read: float

    @property
    def products(self) -> float:
        """Products that are summed, per pixel of the frame."""
        return self.inside * self.outside * self.taps * self.per_pixel

    @property
    def values(self) -> float:
        """Values that it reads and writes, per pixel of the frame, if each is moved once."""
        return self.read + self.outside * self.per_pixel


def layers(architecture: Architecture, *, mates: bool) -> list[Layer]:
    """Return the convolutions of the network for a frame with or without mates, as they are computed.

    A level ``l`` has a pixel for 4 x 4^l pixels of the frame. The first convolution after an upsampling is two: 3 x 3
    taps on the level's own channels, and, as a doubled image repeats its values, 2 x 2 on those of the level below.
    """
    # Imported late, as it takes torch along.
    from bluesky_symdenoise.denoiser.features import ALONE, BLOCK_FEATURES, PIXEL_FEATURES

    first = 4 * PIXEL_FEATURES + BLOCK_FEATURES if mates else 4 * len(ALONE) + BLOCK_FEATURES // 2
    widths = architecture.channels
    inside = (first, *widths[:-1])
    found = []
    for level, (before, after) in enumerate(zip(inside, widths, strict=True)):
        at = 1 / 4 ** (level + 1)
        found.append(Layer(f"down {level}, first", before, after, 9, at, before * at))
        found.append(Layer(f"down {level}, second", after, after, 9, at, after * at))
    for level in reversed(range(len(widths) - 1)):
        deep, shallow, at = widths[level + 1], widths[level], 1 / 4 ** (level + 1)
        found.append(Layer(f"up {level}, own", shallow, shallow, 9, at, shallow * at))
        # It adds to what the other convolution wrote, which is read once more.
        found.append(Layer(f"up {level}, from below", deep, shallow, 4, at, (deep / 4 + shallow) * at))
        found.append(Layer(f"up {level}, second", shallow, shallow, 9, at, shallow * at))
    found.append(Layer("head", widths[0], 4 * architecture.outputs, 1, 1 / 4, widths[0] / 4))
    return found


def cost(architecture: Architecture, *, mates: bool, dtype: str) -> tuple[float, float]:
    """Return bytes that the network moves per pixel of the frame, and products that it sums.

    Each convolution reads its input and writes its output once: activations, weights, pooling and all that is outside
    the network are left out, so that it is a lower limit.
    """
    found = layers(architecture, mates=mates)
    return BYTES[dtype] * sum(layer.values for layer in found), sum(layer.products for layer in found)


def share_rows(
    architecture: Architecture, limits: dict[str, Any], pixels_per_s: float, *, mates: bool, dtype: str
) -> list[Row]:
    """Return the shares of the device's memory and arithmetic limits that the network alone takes at this rate."""
    moved, products = (pixels_per_s * each for each in cost(architecture, mates=mates, dtype=dtype))
    return [
        Row("  bytes of its convolutions, of the copies", 100 * moved / limits["bytes_per_s"], "%", ""),
        Row("  products of them, of the matrix product", 100 * products / limits["products_per_s"], "%", ""),
    ]


def limit_rows(
    ours: Worker,
    cases: Sequence[dict[str, Any]],
    *,
    model: str | None,
    device: str,
    dtypes: Sequence[str],
    threads: int,
) -> list[Row]:
    """Return what the device can do, measured now, and what the denoiser at its fastest takes of it."""
    # Imported late, as it takes torch along.
    from bluesky_symdenoise.denoiser.weights import load_model

    architecture = load_model(model).net.architecture
    rows = []
    for dtype in dtypes:
        found = ours.ask("limits", device=device, dtype=dtype, threads=threads)
        rows.append(Row(f"device, {dtype}: copies, reads and writes", found["bytes_per_s"] / 1e9, "GB/s", ""))
        rows.append(Row(f"device, {dtype}: product of matrices", found["products_per_s"] / 1e9, "Gproduct/s", ""))
        for symmetry in ("1", "2mm"):
            same = [c for c in cases if (c["dtype"], c["threads"], c["symmetry"]) == (dtype, threads, symmetry)]
            if same:
                case = max(same, key=lambda c: c["mpixel_per_s"])
                frame = f"{case['batch']} of {case['shape'][0]} x {case['shape'][1]}"
                rows.append(Row(f"{dtype}, {symmetry}, its fastest: {frame}", case["mpixel_per_s"], "Mpixel/s", ""))
                rate = 1e6 * case["mpixel_per_s"]
                rows += share_rows(architecture, found, rate, mates=symmetry != "1", dtype=dtype)
    return rows


def replayed(home: Path, *, sizes: tuple[int, ...], frames: int, repeats: int, threads: int, device: str) -> list[Row]:
    """Return frames per second of a replay into Tiled beside the denoiser alone, on the device."""
    options = replay.Options(
        sizes=sizes, frames=frames, repeats=repeats, threads=threads, memory_frames=0, device=device
    )
    with served(home) as server:
        return [row for size in sizes for row in replay.throughput(server, home / "frames", options, size)]
