"""Training: independent evidence, the right likelihood, and the same weights however often it was interrupted."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from arrays import frozen
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import nbinom

from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.network import Architecture, PriorNet, posterior, unrefuted
from bluesky_symdenoise.denoiser.weights import load_model, save_weights
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.training import fit as fitting
from bluesky_symdenoise.training import losses as minimised
from bluesky_symdenoise.training import pairs
from bluesky_symdenoise.training.curve import draw_history
from bluesky_symdenoise.training.fit import TrainConfig, fit
from bluesky_symdenoise.training.losses import losses, weighted_loss
from bluesky_symdenoise.training.pairs import (
    MATE_KINDS,
    MATE_SHARES,
    Mixture,
    RealFrames,
    real_frames,
    real_sample,
    sample,
    simulated_sample,
)
from bluesky_symdenoise.training.series import GAP, textured_series
from bluesky_symdenoise.training.simulate import random_mask, random_rate, stopped_rate

SIZE = 128
TINY = TrainConfig(
    name="tiny", version="0", seed=3, channels=(8, 8), steps=4, batch=2, crop=SIZE, warmup=2, bfloat16=False
)


@pytest.fixture(autouse=True)
def torch_state():
    """Thread count and random state belong to the process."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture
def rng():
    return np.random.default_rng(21)


def only(monkeypatch, kind):
    """Mates of one kind."""
    monkeypatch.setattr(pairs, "MATE_SHARES", tuple(float(name == kind) for name in MATE_KINDS))


def flat_frames(rng, *, rate=5.0, frames=3, side=200):
    return RealFrames("flat", frozen(rng.poisson(rate, (frames, side, side))), frozen(np.zeros((side, side), bool)))


# The training run


class TrainingInterruptedError(Exception):
    """The machine goes away."""


def interrupted(monkeypatch, config, output, *, after):
    """Run `fit` until it dies in the step after ``after`` steps; there is a checkpoint after each."""
    steps = 0

    def loss(*args, **options):
        nonlocal steps
        steps += 1
        if steps > after:
            raise TrainingInterruptedError
        return weighted_loss(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "CHECKPOINT_EVERY", -1.0)
        patch.setattr(fitting, "weighted_loss", loss)
        with pytest.raises(TrainingInterruptedError):
            fit(config, output=output)


def same_weights(one, other):
    """Bit for bit."""
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run of four steps."""
    output = tmp_path_factory.mktemp("training") / "deep" / "output"
    fit(TINY, output=output)
    return output


@pytest.mark.train
def test_training_writes_weights_that_denoise(finished, rng):
    path = finished / "tiny.safetensors"
    model = load_model(path)
    assert (model.name, model.version) == ("tiny", "0")
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["training"]["config"] == json.loads(json.dumps(record["training"]["config"]))
    assert record["training"]["config"]["channels"] == [8, 8]
    assert record["training"]["real_sets"] == []
    counts = rng.poisson(1.0, (60, 50))
    result = Denoiser.pretrained(path, device="cpu", threads=1)(counts, symmetry="1")
    assert np.isfinite(result.intensity).all()
    # It did learn: the head starts at zero.
    assert any(parameter.abs().sum() > 0 for parameter in model.net.head.parameters())


@pytest.mark.train
def test_history_has_a_line_per_step(finished):
    lines = [json.loads(line) for line in (finished / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(np.isfinite([line["loss"], line["norm"]]).all() for line in lines)


@pytest.mark.train
def test_a_run_leaves_its_curve_and_its_card(finished):
    with Image.open(finished / "tiny.png") as picture:
        assert picture.format == "PNG"
    card = (finished / "tiny.md").read_text()
    record = json.loads((finished / "tiny.json").read_text())
    for said in ("# Model card: tiny, version 0", record["sha256"], "random weights", "simulations only", "4 steps"):
        assert said in card


def test_a_short_history_is_drawn(tmp_path):
    path = tmp_path / "history.jsonl"
    for lines in (['{"step": 0, "loss": 5, "norm": 1}'], []):
        path.write_text("\n".join(lines))
        draw_history(path, tmp_path / "short.png")
        assert (tmp_path / "short.png").stat().st_size > 0


@pytest.mark.train
def test_ctrl_c_ends_the_step_and_leaves_a_checkpoint(finished, tmp_path, monkeypatch):
    steps = 0

    def loss(*args, **options):
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return weighted_loss(*args, **options)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "weighted_loss", loss)
        with pytest.raises(KeyboardInterrupt):
            fit(TINY, output=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert same_weights(fit(TINY, output=tmp_path), finished / "tiny.safetensors")
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


@pytest.mark.train
def test_a_training_goes_on_with_what_it_began_with_only(finished, tmp_path, rng):
    """Otherwise its model card would be wrong."""
    for name in ("checkpoint.pt", "history.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(SymDenoiseError, match="it began with other real frames"):
        fit(TINY, output=tmp_path, real=[flat_frames(rng)])
    with pytest.raises(SymDenoiseError, match="it began with other weights to start from"):
        fit(TINY, output=tmp_path, initial=finished / "tiny.safetensors")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('steps = "many"', "steps = 'many' cannot be used"),
        ("steps = 0", "steps = 0 cannot be used"),
        ("batch = 0", "batch = 0 cannot be used"),
        ("channels = []", "channels = .. cannot be used"),
        ("channels = [8, -8]", "cannot be used"),
        ('bfloat16 = "yes"', "bfloat16 = 'yes' cannot be used"),
        ("real_share = 1.5", "real_share = 1.5 cannot be used"),
        ("wramup = 5", "it has no key 'wramup'; it may have name, version, seed"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_which_line(tmp_path, line, said):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'name = "a"\nversion = "1"\n{line}\n')
    with pytest.raises(SymDenoiseError, match=said):
        TrainConfig.read(recipe)


def test_a_recipe_needs_a_plain_name(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "../evil"\nversion = "1"\n')
    with pytest.raises(SymDenoiseError, match=r"name = '\.\./evil' cannot be used"):
        TrainConfig.read(recipe)
    recipe.write_text('name = "good"\n')
    with pytest.raises(SymDenoiseError, match="it lacks version"):
        TrainConfig.read(recipe)


@pytest.mark.train
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_ends_with_the_same_weights(finished, tmp_path, monkeypatch, after):
    """Bit for bit."""
    interrupted(monkeypatch, TINY, tmp_path, after=after)
    assert not (tmp_path / "tiny.safetensors").exists()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == after
    path = fit(TINY, output=tmp_path)
    assert same_weights(path, finished / "tiny.safetensors")


@pytest.mark.train
def test_a_finished_run_is_not_run_again(finished, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    path = fit(TINY, output=tmp_path)
    assert same_weights(path, finished / "tiny.safetensors")


@pytest.mark.train
def test_another_seed_gives_other_weights(finished, tmp_path):
    """The control of bit-identity."""
    path = fit(replace(TINY, seed=4), output=tmp_path)
    assert not same_weights(path, finished / "tiny.safetensors")


@pytest.mark.train
@pytest.mark.parametrize("change", [{"seed": 4}, {"steps": 5}, {"channels": (8, 16)}, {"learning_rate": 1e-3}])
def test_the_checkpoint_of_another_recipe_is_refused(finished, tmp_path, change):
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    with pytest.raises(SymDenoiseError, match=r"checkpoint .*belongs to another recipe; choose another --output"):
        fit(replace(TINY, **change), output=tmp_path)


@pytest.mark.train
def test_real_frames_are_mixed_in_and_recorded(tmp_path, rng):
    data = tmp_path / "data"
    data.mkdir()
    write_set(data / "flat.h5", rng.poisson(3.0, (2, 140, 150)).astype(np.uint16))
    path = fit(replace(TINY, steps=1, real_share=1.0), output=tmp_path / "output", real=real_frames(data))
    assert json.loads(path.with_suffix(".json").read_text())["training"]["real_sets"] == ["flat"]


@pytest.mark.train
def test_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "weighted_loss", lambda *args, **options: weighted_loss(*args, **options) * torch.nan)
    model = load_model(fit(replace(TINY, steps=2), output=tmp_path))
    assert all(torch.isfinite(parameter).all() for parameter in model.net.parameters())
    assert all((parameter == 0).all() for parameter in model.net.head.parameters())


def batches(config, first):
    return list(fitting._Samples(config, [], first))


def test_a_batch_depends_on_seed_and_step_alone():
    config = replace(TINY, steps=3, batch=1)
    whole, rest = batches(config, 0), batches(config, 1)
    assert [batch.shape for batch in whole] == 3 * [(1, 8, SIZE, SIZE)]
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one, other)
    # Neither the number of steps nor the weights' width changes what is drawn.
    assert torch.equal(batches(replace(config, steps=4, channels=(4,)), 2)[0], whole[2])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(batches(replace(config, seed=4), 2)[0], whole[2])


def test_the_learning_rate_rises_and_falls():
    config = TrainConfig(name="", version="", steps=100, warmup=10, learning_rate=0.5)
    rates = [fitting.scheduled_rate(config, step) for step in range(101)]
    assert rates[9] == 0.5
    assert all(np.diff(rates[:10]) > 0)
    assert all(np.diff(rates[10:]) < 0)
    assert rates[100] == pytest.approx(0)
    assert min(rates[:100]) > 0


def test_recipes_are_read_from_toml(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "a"\nversion = "2"\nchannels = [8, 8]\nsteps = 7\n')
    assert TrainConfig.read(path) == TrainConfig(name="a", version="2", channels=(8, 8), steps=7)
    path.write_text('name = "a"\nversion = "2"\n')
    assert TrainConfig.read(path) == TrainConfig(name="a", version="2")


@pytest.mark.parametrize("content", ["name = ", 'name = "a"', 'name = "a"\nversion = "1"\nstep = 3', "channels = 8"])
def test_files_that_are_not_recipes_are_refused(tmp_path, content):
    path = tmp_path / "r.toml"
    path.write_text(content)
    with pytest.raises(
        SymDenoiseError, match=r"training recipe .*(could not be read|it lacks version|has no key .step.|channels = 8)"
    ):
        TrainConfig.read(path)
    with pytest.raises(
        SymDenoiseError, match=r"training recipe .*(could not be read|it lacks version|has no key .step.|channels = 8)"
    ):
        TrainConfig.read(tmp_path / "none.toml")


# The likelihood


def batch_of(**fields):
    """A batch of one with the given fields; the others are zero."""
    order = ("counts", "exposure", "mate_counts", "mate_exposure", "target", "target_exposure")
    return torch.from_numpy(np.stack([np.asarray(fields.get(name, np.zeros((SIZE, SIZE)))) for name in order])).float()[
        None
    ]


def test_the_loss_is_the_negative_binomial_likelihood(rng):
    """Equal to SciPy's, from zero counts to thousands, for target exposures of 0.1 to 1000."""
    torch.manual_seed(1)
    net = PriorNet(Architecture((8, 8)))
    torch.nn.init.normal_(net.head.weight)
    rate = np.exp(rng.uniform(np.log(0.01), np.log(30), (SIZE, SIZE)))
    exposure = np.exp(rng.uniform(np.log(0.1), np.log(1000), (SIZE, SIZE)))
    exposure[:9] = 0
    batch = batch_of(
        counts=rng.poisson(rate),
        exposure=np.ones((SIZE, SIZE)),
        target=rng.poisson(exposure * rate),
        target_exposure=exposure,
    )
    with torch.inference_mode():
        loss, weights = losses(net, batch, bfloat16=False)
        shape, scale = (each.double().numpy()[0, 0] for each in posterior(net, *batch[:, :4].split(1, dim=1)))
    target, exposure = batch[0, 4].double().numpy(), batch[0, 5].double().numpy()
    seen = exposure > 0
    expected = -nbinom.logpmf(target[seen], shape[seen], scale[seen] / (scale[seen] + exposure[seen])).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert weights.item() == pytest.approx((1 + batch[0, 0].mean().item() / 10) ** -0.3)


def test_a_sample_without_targets_costs_nothing():
    """And its gradient is finite: nothing that is masked out may be NaN."""
    net = PriorNet(Architecture((8, 8)))
    loss, _ = losses(net, batch_of(counts=np.ones((SIZE, SIZE)), exposure=np.ones((SIZE, SIZE))), bfloat16=False)
    loss.sum().backward()
    assert loss.item() == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_bright_pixels_weigh_more_where_that_is_wanted(rng):
    """By the square root of the brightness of their surroundings."""
    net = PriorNet(Architecture((8, 8)))
    counts = np.ones((SIZE, SIZE))
    counts[:32] = 100.0
    ones = np.ones((SIZE, SIZE))
    target = rng.poisson(counts)

    def loss(seen, **options):
        batch = batch_of(counts=counts, exposure=ones, target=target * seen, target_exposure=ones * seen)
        with torch.inference_mode():
            return losses(net, batch, bfloat16=False, **options)[0].item()

    rows = np.arange(SIZE)[:, None] * np.ones(SIZE)
    bright, dark = loss(rows < 30), loss(rows > 33)
    both = (rows < 30) | (rows > 33)
    assert loss(both) == pytest.approx(np.average([bright, dark], weights=[30, SIZE - 34]), rel=1e-6)
    root = np.sqrt(100 / counts.mean())
    assert loss(both, bright_weight=0.5) == pytest.approx(
        np.average([bright, dark], weights=[30 * root, SIZE - 34]), rel=1e-2
    )


@pytest.mark.parametrize("kind", ["rate", "mse"])
def test_losses_of_a_known_rate_are_least_at_it(rng, monkeypatch, kind):
    rate = rng.gamma(3.0, 0.5, (SIZE, SIZE))
    batch = batch_of(target=7 * rate, target_exposure=np.full((SIZE, SIZE), 7.0))

    def loss(a, b):
        full = torch.ones(1, 1, SIZE, SIZE)
        monkeypatch.setattr(minimised, "posterior", lambda *_: (a * full, b * full))
        return losses(PriorNet(Architecture((8, 8))), batch, bfloat16=False, kind=kind)[0].item()

    truth = loss(3.0, 2.0)
    for factor in (0.8, 1.25):
        assert loss(factor * 3.0, 2.0) > truth + 1e-3
        assert loss(3.0, factor * 2.0) > truth + 1e-3
    assert (loss(6.0, 4.0) > truth + 1e-3) == (kind == "rate")  # a wrong sigma


@pytest.mark.parametrize("kind", ["expected", "rate"])
def test_losses_of_known_rates_and_of_counts_are_mixed_in_one_batch(rng, monkeypatch, kind):
    """In one batch, known rates and counts are targets; with many photons both losses agree."""
    rate = 0.4 + rng.gamma(3.0, 0.5, (SIZE, SIZE))
    exposure = {"expected": 30.0, "rate": 1e5}[kind]
    full = np.full((SIZE, SIZE), exposure)
    known = batch_of(target=exposure * rate, target_exposure=full)
    few = batch_of(target=rng.poisson(5 * rate), target_exposure=np.full((SIZE, SIZE), 5.0))
    counted = torch.cat([batch_of(target=rng.poisson(exposure * rate), target_exposure=full) for _ in range(40)])

    def loss(batch, kind, shape=3.0, scale=2.0):
        ones = torch.ones(len(batch), 1, SIZE, SIZE)
        monkeypatch.setattr(minimised, "posterior", lambda *_: (shape * ones, scale * ones))
        return losses(PriorNet(Architecture((8, 8))), batch, bfloat16=False, kind=kind)[0]

    both = loss(torch.cat([known, few]), kind)
    assert torch.equal(both, torch.cat([loss(known, kind), loss(few, "counts")]))
    for other in ({"shape": 3.3}, {"scale": 1.7}, {"shape": 6.0, "scale": 4.0}):
        difference = loss(known, kind, **other) - loss(known, kind)
        of_photons = loss(counted, "counts", **other) - loss(counted, "counts")
        assert difference.item() == pytest.approx(of_photons.mean().item(), abs=2e-3)


@pytest.mark.train
def test_the_recipe_says_what_is_minimised(tmp_path, monkeypatch):
    asked = []

    def loss(*args, **options):
        asked.append((options["kind"], options["bright_weight"]))
        return weighted_loss(*args, **options)

    monkeypatch.setattr(fitting, "weighted_loss", loss)
    kinds = ("counts", "expected", "rate", "mse")
    for kind in kinds:
        fit(replace(TINY, steps=1, loss=kind, bright_weight=0.5), output=tmp_path / kind)
    assert asked == [(kind, 0.5) for kind in kinds]


def test_a_known_rate_is_that_of_simulations_only(tmp_path, rng):
    clean = simulated_sample(rng, SIZE, Mixture(known_from=0.0))
    seen = clean.target_exposure > 0
    assert (clean.target[seen] != np.rint(clean.target[seen])).mean() > 0.9
    some = simulated_sample(rng, SIZE, Mixture(known_from=10.0))
    whole = some.target == np.rint(some.target)
    assert whole[some.target < 10].all()
    assert whole[some.target > 40].mean() < 0.05  # by rounding
    counted = simulated_sample(rng, SIZE, Mixture())
    assert (counted.target == np.rint(counted.target)).all()
    with pytest.raises(SymDenoiseError, match="loss = 'mse' on real frames: their true rate is not known"):
        fit(replace(TINY, loss="mse"), output=tmp_path, real=[flat_frames(rng)])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "a"\nversion = "1"\nloss = "l1"\n')
    with pytest.raises(SymDenoiseError, match="loss = 'l1': it must be one of counts, expected, rate, mse"):
        TrainConfig.read(recipe)


@pytest.mark.train
def test_without_the_conjugate_head_the_networks_answer_is_the_result(tmp_path, rng):
    path = fit(replace(TINY, steps=1, conjugate=False), output=tmp_path)
    counts = rng.poisson(5.0, (SIZE, SIZE))
    model = load_model(path)
    assert not model.net.architecture.conjugate
    model.net.head.get_parameter("bias").zero_()
    result = Denoiser(model, device="cpu")(counts, symmetry="1")
    # Untrained, it says the local mean whatever the pixel counted.
    assert np.corrcoef(result["intensity"].values.ravel(), counts.ravel())[0, 1] < 0.3
    assert result["intensity"].values.sum() == pytest.approx(counts.sum(), rel=1e-3)


@pytest.mark.train
@pytest.mark.parametrize("outputs", [3, 5])
def test_weights_without_the_shares_of_log_rates_go_on_and_start_a_training(tmp_path, rng, outputs):
    """Their results are unchanged, and a network with more outputs that starts from them gives the same."""
    old = PriorNet(Architecture(TINY.channels, outputs=outputs))
    torch.nn.init.normal_(old.head.weight, std=0.1)
    path = save_weights(old, tmp_path, name="old", version="1", training={})
    stored = Architecture(TINY.channels, outputs=3).to_dict()
    assert Architecture.from_dict({"channels": stored["channels"]}) == Architecture(TINY.channels, outputs=3)
    counts = rng.poisson(5.0, (SIZE, SIZE))
    before = Denoiser(load_model(path), device="cpu", threads=1)(counts, symmetry="1")
    still = replace(TINY, steps=1, learning_rate=0.0)
    new = load_model(fit(still, output=tmp_path / "new", initial=path))
    assert new.net.architecture.outputs == 9
    after = Denoiser(new, device="cpu", threads=1)(counts, symmetry="1")
    np.testing.assert_allclose(after["intensity"], before["intensity"], rtol=1e-5)
    assert before["intensity"].std() > 0.1


def test_the_output_may_be_the_pixels_own_rate():
    """Where the network passes on the logarithm of what was counted, the prior's mean is that count."""
    net = PriorNet(Architecture((8, 8)))
    net.head.get_parameter("bias").data[12:16] = 1.0  # the share of the pixel's own, four pixels a block
    counts = torch.arange(SIZE * SIZE).reshape(1, 1, SIZE, SIZE) % 50 + 20.0
    ones, none = torch.ones_like(counts), torch.zeros_like(counts)
    with torch.inference_mode():
        shape, rate = posterior(net, counts, ones, none, none)
        kappa = shape - counts
        mean = kappa / (rate - 1)
    np.testing.assert_allclose(mean, counts, rtol=0.03)


def test_the_output_may_be_the_mean_of_opposite_neighbours():
    """On a slope, this mean is the pixel's rate, whatever its own counts."""
    net = PriorNet(Architecture((8, 8)))
    net.head.get_parameter("bias").data[28:32] = 0.5  # the share of the pair down right and up left
    slope = torch.exp(torch.arange(SIZE) / 60)[:, None] * torch.exp(-torch.arange(SIZE) / 120)
    counts = (200 * slope).reshape(1, 1, SIZE, SIZE)
    ones, none = torch.ones_like(counts), torch.zeros_like(counts)
    holes = counts * (torch.rand(counts.shape) > 0.2)
    with torch.inference_mode():
        for seen in (counts, holes):
            shape, rate = posterior(net, seen, ones, none, none)
            kappa = shape - seen
            mean = (kappa / (rate - 1)).squeeze().numpy()
            pair = torch.sqrt((seen[0, 0, :-2, :-2] + 0.375) * (seen[0, 0, 2:, 2:] + 0.375)).numpy()
            np.testing.assert_allclose(mean[1:-1, 1:-1][pair > 99], pair[pair > 99], rtol=0.01)


def test_counts_that_refute_the_prior_by_more_than_five_sigma_are_believed():
    kappa, mean = torch.tensor([10.0, 10.0, 10.0, 10.0, 1e4]), torch.tensor([38.0, 38.0, 30.0, 38.0, 100.0])
    counts, exposure = torch.tensor([1000.0, 60.0, 0.0, 0.0, 20.0]), torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    found = unrefuted(kappa, mean, counts, exposure)
    assert found[1:4].tolist() == [10.0, 10.0, 10.0]  # 1.5 and 4.8 sigma, not measured
    away = 2 * (torch.sqrt(counts + 0.375) - torch.sqrt(mean + 0.375)).abs()
    for refuted in (0, 4):
        sigmas = away[refuted] / torch.sqrt(1 + mean[refuted] / found[refuted])
        assert sigmas.item() == pytest.approx(5, rel=1e-4)
    assert ((counts + found) / (exposure + found / mean))[0].item() == pytest.approx(1000, rel=0.03)


def test_bright_parts_are_drawn_more_often(rng):
    frame = np.ones((600, 600))
    frame[:100, :100] = 50.0
    sets = [RealFrames("one", frozen(frame[None]), frozen(np.zeros(frame.shape, bool)))]

    def brightness(stopped):
        drawn = [real_sample(rng, sets, SIZE, Mixture(stopped=stopped)) for _ in range(60)]
        return np.mean([(one.counts + one.mate_counts + one.target).max() > 40 for one in drawn])

    assert brightness(1.0) > brightness(0.0) + 0.2


def test_patterns_around_a_beam_stop_span_decades(rng):
    rates = [stopped_rate(rng, (SIZE, SIZE)) for _ in range(20)]
    assert all(rate.mean() == pytest.approx(1) and rate.min() > 0 for rate in rates)
    assert np.median([rate.max() / np.median(rate) for rate in rates]) > 10


@pytest.mark.parametrize("exposure", [1.0, 100.0])
def test_the_truth_has_the_smallest_loss(rng, monkeypatch, exposure):
    """Rates from a Gamma distribution, counts from them: a wrong mean or a wrong width costs likelihood."""
    shape, scale = 3.0, 2.0
    rate = rng.gamma(shape, 1 / scale, (SIZE, SIZE))
    batch = batch_of(target=rng.poisson(exposure * rate), target_exposure=np.full((SIZE, SIZE), exposure))

    def loss(a, b):
        full = torch.ones(1, 1, SIZE, SIZE)
        monkeypatch.setattr(minimised, "posterior", lambda *_: (a * full, b * full))
        per_sample, _ = losses(PriorNet(Architecture((8, 8))), batch, bfloat16=False)
        return per_sample.item()

    truth = loss(shape, scale)
    for factor in (0.8, 1.25):
        assert loss(factor * shape, scale) > truth + 1e-3
        assert loss(shape, factor * scale) > truth + 1e-3
    # The mean is right and sigma is not: seen at high target exposure, hardly at an equal one.
    cost = min(loss(factor * shape, factor * scale) for factor in (0.5, 2.0)) - truth
    assert cost > (0.05 if exposure > 10 else 1e-3)


# The samples


def correlation(a, b):
    """Of residuals, in standard deviations of what independent noise gives."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).mean() / (a.std() * b.std()) * np.sqrt(a.size)


@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_counts_mates_and_target_are_independent(rng, monkeypatch, kind):
    """On a flat rate nothing is left to correlate: neither the simulated parts nor a thinned frame's."""
    only(monkeypatch, "exact")
    monkeypatch.setattr(pairs, "random_rate", lambda rng, shape: np.ones(shape))
    monkeypatch.setattr(pairs, "random_mask", lambda rng, shape: np.zeros(shape, bool))
    sets = [flat_frames(rng)]
    scores, controls = [], []
    for _ in range(12):
        one = simulated_sample(rng, SIZE, Mixture()) if kind == "simulated" else real_sample(rng, sets, SIZE, Mixture())
        inside = one.mate_exposure > 0
        own, mates, target = (part[inside].astype(float) for part in (one.counts, one.mate_counts, one.target))
        scores += [correlation(own, target), correlation(own, mates), correlation(mates, target)]
        # Control: a target that contains the input's own photons, as a careless split would.
        controls.append(correlation(own, own + target))
    assert np.abs(scores).max() < 4.5
    assert np.abs(scores).mean() < 1.3
    assert np.median(controls) > 4.5


@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_exposures_say_how_counts_scale(rng, monkeypatch, kind):
    """Own counts, exact mates and target have one rate: counts over exposure agree within their noise."""
    only(monkeypatch, "exact")
    sets = [flat_frames(rng)]
    for _ in range(10):
        one = simulated_sample(rng, SIZE, Mixture()) if kind == "simulated" else real_sample(rng, sets, SIZE, Mixture())
        both = (one.exposure > 0) & (one.mate_exposure > 0) & (one.target_exposure > 0)
        if not both.any():
            continue
        parts = [
            (one.counts, one.exposure),
            (one.mate_counts, one.mate_exposure),
            (one.target, one.target_exposure),
        ]
        # Compare at equal weights per pixel; each estimate of the mean has variance sum(y/n^2)/N^2.
        means = [(y[both].astype(float) / n[both]).mean() for y, n in parts]
        errors = [
            np.sqrt((y[both].astype(float) / n[both].astype(float) ** 2).sum() + 1) / both.sum() for y, n in parts
        ]
        for i in range(2):
            assert abs(means[i] - means[2]) < 5 * np.hypot(errors[i], errors[2])


@pytest.mark.parametrize("kind", ["simulated", "real"])
@pytest.mark.parametrize("mates", MATE_KINDS)
def test_samples_are_well_formed(rng, monkeypatch, kind, mates):
    only(monkeypatch, mates)
    sets = [flat_frames(rng, side=100), flat_frames(rng)]
    for _ in range(3):
        one = simulated_sample(rng, SIZE, Mixture()) if kind == "simulated" else real_sample(rng, sets, SIZE, Mixture())
        stacked = one.stacked()
        assert stacked.shape == (8, SIZE, SIZE)
        assert stacked.dtype == np.float32
        assert np.isfinite(stacked).all()
        assert (stacked >= 0).all()
        for y, n in (
            (one.counts, one.exposure),
            (one.mate_counts, one.mate_exposure),
            (one.target, one.target_exposure),
        ):
            assert not y[n == 0].any()
            np.testing.assert_array_equal(y, np.round(y))
        # A target where nothing is known would teach guessing.
        assert not one.target_exposure[(one.exposure == 0) & (one.mate_exposure == 0)].any()
        if mates == "absent":
            assert not one.mate_exposure.any()
            assert not one.mate_counts.any()


def test_exact_mates_are_seen_and_wrong_ones_are_gated(rng, monkeypatch):
    share = {}
    for kind in ("exact", "wrong"):
        only(monkeypatch, kind)
        monkeypatch.setattr(pairs, "_mate_exposure", lambda rng, shape: np.ones(shape))
        share[kind] = np.mean([(simulated_sample(rng, SIZE, Mixture()).mate_exposure > 0).mean() for _ in range(8)])
    assert share["exact"] > 0.9
    assert share["wrong"] < 0.6


def test_the_shares_of_the_kinds_of_mates_add_up():
    assert len(MATE_SHARES) == len(MATE_KINDS)
    assert sum(MATE_SHARES) == pytest.approx(1)


def test_thinning_keeps_every_photon(rng, monkeypatch):
    """Own counts, mates and target are parts of the real frame: they add up to it."""
    only(monkeypatch, "exact")
    monkeypatch.setattr(pairs, "random_mask", lambda rng, shape: np.zeros(shape, bool))
    monkeypatch.setattr(pairs, "symmetry_gate", lambda frame, other: np.ones(frame.counts.shape, bool))
    frame = rng.poisson(6.0, (SIZE, SIZE))
    mask = rng.uniform(size=frame.shape) < 0.1
    frame[mask] = 60_000
    one = real_sample(rng, [RealFrames("one", frozen(frame[None]), frozen(mask))], SIZE, Mixture())
    total = one.counts + one.mate_counts + one.target
    assert sorted(total.ravel()) == sorted(np.where(mask, 0, frame).ravel())
    assert (one.exposure == 0).sum() == mask.sum()


def test_frames_smaller_than_the_crop_are_padded(rng):
    one = real_sample(rng, [flat_frames(rng, side=50)], SIZE, Mixture())
    assert one.counts.shape == (SIZE, SIZE)
    assert not one.exposure[50:].any()
    assert not one.target_exposure[:, 50:].any()


def test_the_share_of_real_samples(rng, monkeypatch):
    monkeypatch.setattr(pairs, "simulated_sample", lambda rng, size, mixture: "simulated")
    monkeypatch.setattr(pairs, "real_sample", lambda rng, sets, size, mixture: "real")

    def drawn(sets, share):
        return np.mean([sample(rng, sets, size=SIZE, mixture=Mixture(real=share)) == "real" for _ in range(2000)])

    assert drawn(["a set"], 0.4) == pytest.approx(0.4, abs=0.06)
    assert drawn(["a set"], 1.0) == 1
    assert drawn([], 1.0) == 0


def write_set(path, counts, *, role="train", noise="counting", mask=None):
    with h5py.File(path, "w") as file:
        file["counts"] = counts
        file["mask"] = np.zeros(counts.shape[1:], np.uint8) if mask is None else mask
        file.attrs.update({name: value for name, value in (("role", role), ("noise", noise)) if value is not None})


def test_test_sets_and_integrating_detectors_are_no_training_data(tmp_path, rng):
    counts = rng.poisson(1.0, (2, 6, 7)).astype(np.uint16)
    mask = (rng.uniform(size=(6, 7)) < 0.3).astype(np.uint8)
    write_set(tmp_path / "b.h5", counts, mask=mask)
    write_set(tmp_path / "a.h5", counts[:1])
    write_set(tmp_path / "held_out.h5", counts, role="test")
    write_set(tmp_path / "ccd.h5", counts, noise="integrating")
    write_set(tmp_path / "unknown_role.h5", counts, role=None)
    write_set(tmp_path / "unknown_noise.h5", counts, noise=None)
    with h5py.File(tmp_path / "no_counts.h5", "w") as file:
        file.attrs.update({"role": "train", "noise": "counting"})
    (tmp_path / "notes.txt").write_text("no data")
    sets = real_frames(tmp_path)
    assert [each.name for each in sets] == ["a", "b"]
    np.testing.assert_array_equal(sets[1].counts, counts)
    assert sets[1].mask.dtype == bool
    np.testing.assert_array_equal(sets[1].mask, mask > 0)
    with pytest.raises(SymDenoiseError, match="no such folder"):
        real_frames(tmp_path / "nowhere")


# The simulations


def test_simulated_rates_are_positive_and_of_mean_one():
    for seed in range(25):
        rate = random_rate(np.random.default_rng(seed), (96, 80))
        assert rate.shape == (96, 80)
        assert np.isfinite(rate).all()
        assert (rate > 0).all()
        assert rate.mean() == pytest.approx(1)
    again = [random_rate(np.random.default_rng(seed), (96, 80)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_simulated_masks_leave_something_to_see():
    masks = [random_mask(np.random.default_rng(seed), (96, 80)) for seed in range(60)]
    assert all(mask.dtype == bool for mask in masks)
    assert all(not mask.all() for mask in masks)
    assert any(mask.any() for mask in masks)
    assert any(not mask.any() for mask in masks)


def test_a_series_has_poisson_counts_of_its_truth(rng):
    series = textured_series(rng, frames=3, shape=(160, 176), photons_per_pixel=2.0)
    good = ~series.mask
    assert (series.counts[:, series.mask] == GAP).all()
    assert series.truth[0][good].mean() == pytest.approx(2.0, rel=1e-5)
    counts, truth = series.counts[:, good].astype(float), series.truth[:, good].astype(float)
    chi = (counts - truth) ** 2 / truth
    assert chi.mean() == pytest.approx(1, abs=5 * chi.std() / np.sqrt(chi.size))
    # The sample orients itself: the first frame is isotropic in its rings and the last is not.
    assert not np.allclose(series.truth[0], series.truth[2], rtol=0.1)
