"""Frames that borrow the photons of others: the device follows the law, and bits depend on the window alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bluesky_symdenoise.denoiser.choices import Choices
from bluesky_symdenoise.denoiser.device.borrow import Borrowed, borrowed
from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.frame import held
from bluesky_symdenoise.denoiser.device.gate import Evidence
from bluesky_symdenoise.denoiser.device.inputs import Inputs
from bluesky_symdenoise.denoiser.device.layers import Layers
from bluesky_symdenoise.denoiser.device.posterior import device_posterior
from bluesky_symdenoise.denoiser.features import features
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.network import TRUST, Architecture, PriorNet, posterior, trusted
from bluesky_symdenoise.denoiser.weights import Model, decode, encode
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours.borrowed import borrowed_evidence
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.begin import begin_from, joined

CPU = torch.device("cpu")
STEPS = np.array([-1, 1, -2, 2, -3, 3], float)[:, None]


def rates(size=(150, 170), rows=7, jump=False):
    y, x = np.mgrid[: size[0], : size[1]]
    radius = np.hypot(y - 60.3, x - 80.1)
    rate = 0.3 + 3 * np.exp(-(((radius - 40) / 3) ** 2))
    return [np.roll(rate, 75, 0) if jump and row % 2 else rate for row in range(rows)]


def counted(rng, scenes, level=1.0):
    return np.stack([rng.poisson(rate * level) for rate in scenes])


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("level", [0.1, 1.0, 20.0, 300.0])
@pytest.mark.parametrize("kind", ["still", "jump", "flat", "masked", "flux"])
def test_the_device_lends_what_the_law_says(rng, level, kind):
    """A score within rounding of its threshold may fall on either side: few pixels may."""
    counts = counted(rng, rates(jump=kind == "jump"), level).astype(float)
    if kind == "flux":
        counts[2] = rng.poisson(rates()[0] * level * 1.7)
    exposure = np.ones(counts.shape[1:])
    if kind == "flat":
        exposure = 1 + 0.2 * np.cos(np.arange(170) / 20)[None] * np.ones((150, 1))
        counts = rng.poisson(np.stack(rates()) * level * exposure).astype(float)
    if kind == "masked":
        exposure[:, 100:110] = 0
        counts = counts * exposure
    frames = [Frame(each, exposure, 1.0) for each in counts]
    if kind == "masked":
        alone = exposure.copy()
        alone[20:30, 20:30] = 0
        frames[1] = Frame(counts[1] * alone, alone, 1.0)
    law = borrowed_evidence(frames[0], frames[1:], STEPS)
    with torch.inference_mode():
        ours = [
            borrowed(held(frames[:1], crew), held(frames[1:], crew), STEPS) for crew in (Crew(CPU, 1), Crew(CPU, 3))
        ]
    if law is None:
        assert ours == [None, None]
        return
    one, three = (each.evidence.exposure[0, :150, :170].numpy() for each in ours)
    np.testing.assert_array_equal(one, three)
    np.testing.assert_allclose(ours[0].ratios, law.ratios, rtol=1e-5)
    close = np.isclose(one, law.exposure, rtol=0.02, atol=0.02)
    assert close.mean() > 0.95
    here = ours[0].evidence.counts[0, :150, :170].numpy()
    same = np.isclose(one, law.exposure, rtol=1e-4) & (one > 0)
    np.testing.assert_allclose(here[same], law.counts[same], rtol=2e-3, atol=2e-3)


def lending_net(**more):
    torch.manual_seed(3)
    net = PriorNet(Architecture((16, 16, 32, 32), lent=True, leaky_from=2, **more))
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return net.requires_grad_(False).eval()


@pytest.mark.parametrize("mates", [True, False])
@pytest.mark.parametrize("lent", [True, False])
def test_the_layers_in_bands_are_the_network(rng, mates, lent):
    net = lending_net()
    own, other, third = (
        [torch.from_numpy(rng.poisson(1.0 * n, (2, 1, 256, 128)).astype(np.float32)), torch.full((2, 1, 256, 128), n)]
        for n in (1.0, 3.0, 6.5)
    )
    every = [one + more for one, more in zip(own, third, strict=True)] if lent else own
    nothing = [torch.zeros(2, 1, 256, 128)] * 2
    with torch.inference_mode():
        per_pixel, per_block, mean = features(*every, *(other if mates else nothing), own if lent else None)
        ratio, log_kappa, trust = net(per_pixel, per_block)
        single = [Evidence(each[0][:, 0], each[1][:, 0]) for each in (every, other, own)]
        crew = Crew(CPU, 2)
        inputs = Inputs(single[0], single[1] if mates else None, crew, single[2] if lent else None)
        prior = Layers(net, crew)(inputs, part_pixels=2**20)
    torch.testing.assert_close(prior.mean, (mean * torch.exp(ratio))[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(prior.log_kappa, log_kappa[:, 0], rtol=1e-3, atol=1e-3)
    assert (trust is None, prior.trust is None) == (not lent, not lent)
    if lent:
        torch.testing.assert_close(trusted(prior.trust), trust[:, 0], rtol=1e-3, atol=1e-3)


def test_rows_that_are_not_trusted_do_not_count(rng):
    """The law of the posterior with other rows: their photons times the trust, and none with a trust of zero."""
    net = lending_net()
    size = (1, 1, 128, 128)
    own = [torch.from_numpy(rng.poisson(1.0, size).astype(np.float32)), torch.ones(size)]
    lent = [torch.from_numpy(rng.poisson(4.0, size).astype(np.float32)), torch.full(size, 4.0)]
    nothing = [torch.zeros(size)] * 2
    shapes = {}
    for bias in (-50.0, 50.0):
        net.head.bias[-4:] = bias
        with torch.inference_mode():
            shapes[bias] = posterior(net, *own, *nothing, *lent)
    # Only the evidence differs, not the prior: 5 exposures of counts, or 1.
    (few, little), (many, much) = shapes.values()
    refuted = (many - few - lent[0]).abs() > 1e-3
    assert refuted.float().mean() < 0.02
    torch.testing.assert_close((much - little)[~refuted], lent[1][~refuted], rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        alone = posterior(net, *own, *nothing)
        torch.testing.assert_close(posterior(net, *own, *nothing, *nothing), alone)


@pytest.mark.parametrize("views", [1, 8])
def test_a_frame_keeps_its_total_whatever_is_lent(rng, views):
    """Photons of rows whose flux is told wrong by 3 % do not change a frame's sum."""
    net = lending_net()
    scene = 4 * rates((128, 128), rows=1)[0]
    counts = rng.poisson(scene).astype(np.float64)
    lent = Evidence(*(torch.from_numpy(x[None].astype(np.float32)) for x in (8.24 * scene, np.full(scene.shape, 8.0))))
    frame, choices = Frame(counts, np.ones(scene.shape), 1.0), Choices(views, False, None, 2**20)
    found = Borrowed(lent, np.ones(8), np.ones(8))
    with torch.inference_mode():
        out = device_posterior(Layers(net, Crew(CPU, 2)), [frame], Symmetry("1"), choices, [found])
    assert out[0, 0].sum() == pytest.approx(counts.sum(), rel=2e-3)


def test_weights_that_know_other_rows_are_stored_and_loaded():
    net = lending_net()
    assert decode(encode(net)).architecture == net.architecture
    old = PriorNet(Architecture((16, 16, 32, 32)))
    assert set(old.architecture.to_dict()) == {"channels", "conjugate", "outputs"}


def test_frames_that_borrow_nothing_have_a_network_of_their_own(rng):
    """Beside the network for frames that borrow, the other one is not touched: neither its bits nor its training."""
    alone, lending = lending_net(), lending_net()
    alone = PriorNet(replace(alone.architecture, lent=False, leaky_from=None)).requires_grad_(False).eval()
    torch.nn.init.normal_(alone.head.weight, std=0.1)
    both = decode(encode(joined(alone, lending)))
    assert both.architecture == replace(alone.architecture, borrowing=lending.architecture)
    frames = rng.poisson(1.0, (2, 128, 128)).astype(np.float64)
    models = [Model(net, "some", "1", "0" * 64) for net in (alone, lending, both)]
    ours = [Denoiser(model, device="cpu", threads=1) for model in models]
    single = [each(frames, symmetry="1")["intensity"].values for each in ours]
    np.testing.assert_array_equal(single[2], single[0])
    lent = [each(frames, symmetry="1", borrow="both")["intensity"].values for each in ours]
    np.testing.assert_array_equal(lent[2], lent[1])
    assert (lent[2] != lent[0]).any()
    half = both.in_bfloat16()
    assert half.head.weight.dtype == half.other.head.weight.dtype == torch.float32
    assert half.other.dtype == torch.bfloat16
    # Training goes on with either network.
    net = PriorNet(lending.architecture)
    begin_from(net, both, what="both")
    assert torch.equal(net.down[0][0].weight, lending.down[0][0].weight)
    net = PriorNet(alone.architecture)
    begin_from(net, both, what="both")
    assert torch.equal(net.down[0][0].weight, alone.down[0][0].weight)
    assert encode(joined(both, None)) == encode(alone)


def test_a_training_begins_with_the_function_of_its_parent(rng):
    """What the parent lacks adds nothing yet, but for the rim of levels that were dead."""
    torch.manual_seed(5)
    parent = PriorNet(Architecture((16, 16, 32, 32)))
    torch.nn.init.normal_(parent.head.weight, std=0.1)
    with torch.no_grad():
        # Dead from level 2 on.
        for layer in parent.down[2]:
            if isinstance(layer, torch.nn.Conv2d):
                layer.bias.fill_(-1e3)
    net = PriorNet(Architecture((16, 16, 32, 32), lent=True, leaky_from=2))
    begin_from(net, parent, what="parent")
    own = [torch.from_numpy(rng.poisson(1.0, (1, 1, 256, 256)).astype(np.float32)), torch.ones(1, 1, 256, 256)]
    mates, lent = [3 * own[0], 3 * own[1]], [8 * own[0], 8 * own[1]]
    with torch.inference_mode():
        expected = parent(*features(*own, *mates)[:2])
        ours = net(*features(*own, *mates)[:2])
        inside = np.s_[..., 96:160, 96:160]
        torch.testing.assert_close(ours[0][inside], expected[0][inside], rtol=1e-3, atol=1e-3)
        every, nothing = [one + more for one, more in zip(own, lent, strict=True)], [torch.zeros_like(own[0])] * 2
        # Nine exposures of equal rows are one of nine times the counts.
        expected = parent(*features(every[0], own[1], *nothing)[:2])
        ours = net(*features(*every, *nothing, own)[:2])
        torch.testing.assert_close(ours[0][inside], expected[0][inside], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours[2], torch.full_like(ours[2], torch.sigmoid(torch.tensor(TRUST))))
    with pytest.raises(SymDenoiseError, match="initial weights"):
        begin_from(PriorNet(Architecture((16, 32, 32, 32))), parent, what="parent")


def test_a_stack_borrows_as_its_rows_do_one_by_one(denoiser, rng):
    """Bits of a row are a function of its window: not of the stack, the batch or the order of the lent frames."""
    stack = counted(rng, rates(rows=6))
    for side in ("past", "both"):
        whole = denoiser(stack, symmetry="1", borrow=side, borrow_reach=2)
        assert whole["borrowed"].dims == ("frame",)
        for row in range(6):
            others = [other for other in range(row - 2, row + 3 if side == "both" else row) if other != row]
            near = sorted((other for other in others if 0 <= other < 6), key=lambda other: (abs(other - row), other))
            lent = [Lent(stack[other], (float(other - row),), row=other) for other in near]
            alone = denoiser(stack[row], symmetry="1", lent=lent)
            for name in ("intensity", "sigma"):
                np.testing.assert_array_equal(alone[name].values, whole[name].values[row])
            assert float(alone["borrowed"]) == whole["borrowed"].values[row]
            assert [row for row, _ in alone.attrs["borrow"][0]] == near
    assert "borrowed" not in denoiser(stack, symmetry="1")
    assert whole["borrowed"].values[2] > 3


def test_borrowing_is_closer_to_the_rate_and_claims_no_more_than_it_knows(denoiser, rng):
    scenes = rates(rows=9)
    stack = counted(rng, scenes)
    alone, both = (denoiser(stack, symmetry="1", **more) for more in ({}, {"borrow": "both", "borrow_reach": 4}))
    error = [((each["intensity"].values[4] - scenes[4]) ** 2).mean() for each in (alone, both)]
    assert error[1] < 0.75 * error[0]
    assert both["sigma"].values[4].mean() < alone["sigma"].values[4].mean()
    pull = (both["intensity"].values[4] - scenes[4]) / both["sigma"].values[4]
    assert 0.6 < pull.std() < 1.3
    # A negative control: rows of another scene.
    other = counted(rng, [*rates(rows=4, jump=False), *[np.roll(each, 50, 1) for each in rates(rows=5)]])
    result = denoiser(other[3:5], symmetry="1", borrow="both")
    np.testing.assert_array_equal(result["intensity"].values, denoiser(other[3:5], symmetry="1")["intensity"].values)
    assert not result["borrowed"].values.any()


def test_exposures_of_one_row_lend_to_each_other(denoiser, rng):
    row = counted(rng, rates(rows=3))
    before = counted(rng, rates(rows=1))[0]
    result = denoiser(row, symmetry="1", lent=[Lent(before, (-1.0,), row=0)])
    assert result["borrowed"].shape == (3,)
    assert (result["borrowed"].values > 2).all()
    alone = denoiser(row, symmetry="1", lent=[])
    assert 1.5 < alone["borrowed"].values.min() <= alone["borrowed"].values.max() <= 2.1


def test_what_cannot_be_borrowed_is_refused(denoiser, rng):
    stack = counted(rng, rates(rows=2))
    one = Lent(stack[1], (1.0,))
    for more, said in (
        ({"borrow": "future"}, "past"),
        ({"borrow": "past", "borrow_reach": 0}, "borrow_reach"),
        ({"borrow": "past", "lent": [one]}, "lent frames"),
        ({"lent": [Lent(stack[1][:-1], (1.0,))]}, "shape"),
        ({"lent": [one, Lent(stack[1], (1.0, 2.0))]}, "offset"),
    ):
        with pytest.raises(SymDenoiseError, match=said):
            denoiser(stack[0] if "lent" in more else stack, symmetry="1", **more)
    older = Denoiser(denoiser.model, device="cpu", threads=1, algorithm="6")
    with pytest.raises(SymDenoiseError, match="algorithm 7"):
        older(stack, symmetry="1", borrow="past")


def test_rows_without_counts_lend_nothing(denoiser, rng):
    stack = counted(rng, rates(rows=3))
    stack[1] = 0
    result = denoiser(stack, symmetry="1", borrow="both")
    assert result["borrowed"].values[1] == 0
    assert result["borrowed"].values[0] > 0.5
    assert [row for row, _ in result.attrs["borrow"][0]] == [2]
