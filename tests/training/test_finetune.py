"""Tuning to a user's own frames: independent targets, scores, and only better models are registered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_runs import write_run
from scipy.stats import nbinom
from typer.testing import CliRunner

from bluesky_symdenoise import finetune
from bluesky_symdenoise.acquisition.past import finetune as module
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.past.stacks import Stack, catalogue_frames, sampled, stacks_of
from bluesky_symdenoise.bench.quality.adapt import main as bench_adapt
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.denoiser import registry
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.network import Architecture, PriorNet
from bluesky_symdenoise.denoiser.weights import load_model, save_weights
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training import scores
from bluesky_symdenoise.training import tune as tuning
from bluesky_symdenoise.training.fit import TrainConfig
from bluesky_symdenoise.training.scores import Paired, false_features, held_out_losses
from bluesky_symdenoise.training.shots import Shot, crops, evidence, same_scene, split, with_repeats
from bluesky_symdenoise.training.simulate import peakless_rate
from bluesky_symdenoise.training.tune import halves, tune

SHAPE = (64, 80)
CENTER = (31.5, 39.5)
#: Large steps for a small untrained network.
QUICK = TrainConfig(
    name="quick",
    version="1",
    steps=12,
    batch=3,
    crop=128,
    learning_rate=1e-2,
    warmup=1,
    real_share=0.67,
    peakless_share=0.6,
    bfloat16=False,
)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A separate registry, few frames for false features, and torch's settings restored."""
    monkeypatch.setenv(registry.MODELS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.setattr(scores, "FRAMES", 2)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def pattern(turn: float = 0.0) -> np.ndarray:
    """A ring with two-fold texture about `CENTER`, expected counts per pixel."""
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    radius, azimuth = np.hypot(y - CENTER[0], x - CENTER[1]), np.arctan2(y - CENTER[0], x - CENTER[1])
    return 0.3 + 6 * np.exp(-((radius - 18) ** 2) / 20) * (1 + np.cos(2 * (azimuth - turn)))


def frames(rng: np.random.Generator, n: int = 16, scale: float = 1.0) -> np.ndarray:
    """A scan of n frames in which the texture turns."""
    counts = rng.poisson([scale * pattern(turn) for turn in np.linspace(0, np.pi, n)]).astype(np.uint16)
    counts.flags.writeable = False
    return counts


def shots_of(stack: np.ndarray, symmetry: Symmetry | None = None) -> list[Shot]:
    return [Shot(counts, np.zeros(SHAPE, bool), symmetry or Symmetry()) for counts in stack]


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """Weights of a small network that knows nothing."""
    torch.manual_seed(0)
    folder = tmp_path / "untrained"
    folder.mkdir()
    return save_weights(PriorNet(Architecture((8, 8))), folder, name="untrained", version="0", training={})


@pytest.fixture
def parent(untrained: Path) -> Denoiser:
    return Denoiser.pretrained(untrained, device="cpu", threads=1)


# Evidence


def test_split_photons_are_independent_and_none_is_lost(rng: np.random.Generator) -> None:
    counts = rng.poisson(4.0, SHAPE).astype(np.uint16)
    counts[3, :5] = 65535
    found = evidence(rng, Shot(counts, np.zeros(SHAPE, bool)), 0.3)
    assert (~found.good).sum() == 5
    np.testing.assert_array_equal((found.counts + found.target)[found.good], counts[found.good])
    assert found.exposure == pytest.approx(7 / 3)
    own, other = found.counts[found.good], found.target[found.good]
    noise = 1 / np.sqrt(own.size)
    assert abs(np.corrcoef(own, other)[0, 1]) < 4 * noise
    # Control: photons that are in both.
    assert np.corrcoef(own, own + other)[0, 1] > 20 * noise


def test_exposures_of_one_scene_are_told_from_those_of_two(rng: np.random.Generator) -> None:
    """At any ratio of exposures."""
    for scale in (0.2, 1.0, 30.0):
        one, *others = shots_of(rng.poisson([pattern(), scale * pattern(), scale * pattern(0.5)]))
        ratio = same_scene(one, others[0])
        assert ratio == pytest.approx(scale, rel=0.05)
        assert same_scene(one, others[1]) is None
    assert same_scene(one, Shot(one.counts[1:], one.mask[1:])) is None
    assert same_scene(one, replace(one, counts=np.zeros(SHAPE, int))) is None


def test_frames_of_one_scene_are_targets_of_each_other(rng: np.random.Generator) -> None:
    stack = rng.poisson([pattern(), pattern(), pattern(1.5)])
    repeated = with_repeats(shots_of(stack))
    np.testing.assert_array_equal(repeated[0].target, stack[1])
    np.testing.assert_array_equal(repeated[1].target, stack[0])
    assert repeated[2].target is None
    # A reference stays what it is.
    given = replace(shots_of(stack)[0], target=stack[2], exposure=9.0)
    assert with_repeats([given, *shots_of(stack)[1:]])[0] is given


@pytest.mark.parametrize("symmetry", [Symmetry(), Symmetry("2", CENTER)])
@pytest.mark.parametrize("paired", [False, True])
def test_crops_are_well_formed(rng: np.random.Generator, symmetry: Symmetry, paired: bool) -> None:
    counts, target = rng.poisson([pattern(), 5 * pattern()]).astype(np.uint16)
    mask = np.zeros(SHAPE, bool)
    mask[:7] = True
    shot = Shot(counts, mask, symmetry, target if paired else None, 5.0 if paired else 1.0)
    mates = 0
    for _ in range(10):
        for one in crops(rng, split(rng, shot), size=128, number=2):
            stacked = one.stacked()
            assert stacked.shape == (8, 128, 128)
            assert np.isfinite(stacked).all()
            assert (stacked >= 0).all()
            measured = (SHAPE[0] - 7) * SHAPE[1]
            assert (one.exposure > 0).sum() == (one.target_exposure > 0).sum() == measured
            assert not one.target[one.target_exposure == 0].any()
            seen = one.exposure > 0
            rates = [(one.counts[seen] / 1).mean(), (one.target[seen] / one.target_exposure[seen]).mean()]
            assert rates[0] == pytest.approx(rates[1], rel=0.15)
            mates += int(one.mate_exposure.any())
    assert (mates > 5) == (symmetry.point_group == "2")


# Figures


def test_noise_is_not_taken_for_a_gain(rng: np.random.Generator) -> None:
    """Two standard errors, about one case in 44 by chance; for few frames the limit is larger."""
    parent = rng.normal(size=(4000, 5))
    none = [Paired.of(one, one + change) for one, change in zip(parent, rng.normal(0, 1e-3, (4000, 5)), strict=True)]
    assert np.mean([each.better for each in none]) == pytest.approx(0.0228, abs=0.008)
    assert np.mean([each.worse for each in none]) == pytest.approx(0.0228, abs=0.008)
    gain = Paired.of(parent[0], parent[0] - 0.01 + rng.normal(0, 1e-3, 5))
    assert (gain.better, gain.worse) == (True, False)
    assert gain.difference == pytest.approx(gain.tuned - gain.parent)
    same = Paired.of(parent[0], parent[0])
    assert (same.better, same.worse) == (False, False)


def test_the_loss_is_that_of_the_posterior(rng: np.random.Generator) -> None:
    """SciPy's negative binomial, with the intensity and sigma that a user gets."""
    denoiser = Denoiser.pretrained(device="cpu", threads=1)
    counts, target = rng.poisson([pattern(), 7 * pattern()])
    (loss,) = held_out_losses(denoiser, [replace(shots_of([counts])[0], target=target, exposure=7.0)], seed=1)
    result = denoiser(counts, symmetry="1")
    mean, sigma = (result[name].values.astype(float) for name in ("intensity", "sigma"))
    a, b = mean**2 / sigma**2, mean / sigma**2
    assert loss == pytest.approx(-nbinom.logpmf(target, a, b / (b + 7)).mean(), rel=1e-6)
    # The same photons are split in the same way whoever is asked.
    shots = shots_of(frames(rng, 4))
    np.testing.assert_array_equal(*(held_out_losses(denoiser, shots, seed=1) for _ in range(2)))


def test_false_features_are_counted() -> None:
    """A denoiser that adds a spot to every frame has one more feature in each."""
    denoiser = Denoiser.pretrained(device="cpu", threads=1)

    class Inventive(Denoiser):
        def __call__(self, counts: Any, **options: Any) -> Any:
            result = super().__call__(counts, **options)
            result.intensity.values[100:104, 50:54] += 10 * result.sigma.values.max()
            return result

    honest = false_features(denoiser, seed=0)
    invented = false_features(Inventive(denoiser.model, device="cpu", threads=1), seed=0)
    found = Paired.of(honest, invented)
    assert found.difference == pytest.approx(1e6 / 256**2, rel=0.2)
    assert found.worse
    assert honest.mean() < 100


def test_frames_without_peaks_have_none() -> None:
    rates = [peakless_rate(np.random.default_rng(seed), (64, 96)) for seed in range(20)]
    assert {rate.std() == 0 for rate in rates} == {True, False}
    for rate in rates:
        assert (rate > 0).all()
        assert rate.mean() == pytest.approx(1)
        # It changes by less than a fifth from pixel to pixel, everywhere in the same sense or once in the other.
        steps = np.diff(np.log(rate), axis=1)
        assert np.abs(steps).max() < 0.2
        assert (np.diff(np.sign(steps), axis=1) != 0).sum(axis=1).max() <= 1


# Tuning


def tuned_with(parent: Denoiser, rng: np.random.Generator, **changes: Any) -> Any:
    on, held_out = halves(shots_of(frames(rng), Symmetry("2", CENTER)), held_out=6, seed=0)
    return tune(parent, on, held_out, config=replace(QUICK, **changes), seconds=300, progress=False)


@pytest.mark.train
def test_a_network_that_knows_nothing_learns(parent: Denoiser, rng: np.random.Generator) -> None:
    before = [parameter.clone() for parameter in parent.model.net.parameters()]
    tuned = tuned_with(parent, rng)
    assert tuned.loss.better
    assert (tuned.steps, tuned.in_time) == (12, True)
    assert tuned.model.name == "quick"
    # The parent is as it was.
    assert all(torch.equal(a, b) for a, b in zip(before, parent.model.net.parameters(), strict=True))


@pytest.mark.train
def test_the_same_seed_gives_the_same_weights(parent: Denoiser) -> None:
    shas = [tuned_with(parent, np.random.default_rng(1), seed=seed, steps=3).model.sha256 for seed in (2, 2, 3)]
    assert shas[0] == shas[1]
    assert shas[0] != shas[2]


def test_no_time_means_no_steps_and_no_gain(parent: Denoiser, rng: np.random.Generator) -> None:
    on, held_out = halves(shots_of(frames(rng, 8)), held_out=4, seed=0)
    tuned = tune(parent, on, held_out, config=QUICK, seconds=0, progress=False)
    assert (tuned.steps, tuned.in_time, tuned.accepted) == (0, False, False)
    assert tuned.loss.difference == 0


@pytest.mark.train
def test_a_model_with_more_false_features_is_not_accepted(parent: Denoiser, rng: np.random.Generator) -> None:
    tuned = tuned_with(parent, rng)
    worse = Paired.of(np.zeros(9), np.arange(1.0, 10))
    assert not replace(tuned, features=worse).accepted
    assert replace(tuned, features=Paired.of(np.arange(1.0, 10), np.zeros(9))).accepted


@pytest.mark.train
def test_simulated_frames_hold_the_network_to_its_parent(
    parent: Denoiser, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergence term keeps the network from changing where there are no peaks."""
    flat = np.full((128, 128), 2.0)

    def moved(anchor: float) -> float:
        monkeypatch.setattr(tuning, "ANCHOR", anchor)
        tuned = tuned_with(parent, np.random.default_rng(1))
        after = Denoiser(tuned.model, device="cpu", threads=1)
        counts = np.random.default_rng(3).poisson(flat)
        sigmas = [each(counts, symmetry="1").sigma.values.mean() for each in (parent, after)]
        return float(abs(np.log(sigmas[1] / sigmas[0])))

    assert moved(100.0) < 0.5 * moved(0.0)


def test_held_out_frames_are_not_tuned_on(rng: np.random.Generator) -> None:
    shots = shots_of(frames(rng))
    on, held_out = halves(shots, held_out=5, seed=3)
    assert (len(on), len(held_out)) == (11, 5)
    assert {id(shot) for shot in on}.isdisjoint(id(shot) for shot in held_out)
    assert [id(s) for s in halves(shots, held_out=5, seed=3)[1]] == [id(s) for s in held_out]
    assert [id(s) for s in halves(shots, held_out=5, seed=4)[1]] != [id(s) for s in held_out]


# What is read


def test_a_long_run_is_sampled_and_not_loaded() -> None:
    read: list[int] = []

    def frame(index: int) -> np.ndarray:
        read.append(index)
        return np.ones(SHAPE, np.uint16)

    chosen = sampled([Stack("a", (10**5, *SHAPE), frame, True), Stack("b", (7, *SHAPE), frame, True)], most=50, seed=1)
    assert len(chosen) == len(set(chosen)) == 50
    assert chosen == sorted(chosen)
    # In pairs of neighbours.
    assert all(b == (a[0], a[1] + 1) for a, b in zip(chosen[::2], chosen[1::2], strict=True))
    assert not read
    assert len(sampled([Stack("a", (5, *SHAPE), frame, True)], most=50, seed=1)) == 5


@pytest.mark.parametrize("wrong", [np.zeros(SHAPE), np.zeros((0, *SHAPE)), [[1, 2]]])
def test_arrays_that_are_not_stacks_of_frames_are_refused(wrong: Any) -> None:
    with pytest.raises(SymDenoiseError, match=r"they must be \(frame, y, x\)"):
        stacks_of(wrong, stream=None, data_key=None)


# The whole


@pytest.mark.train
def test_a_better_model_is_registered_with_its_lineage(untrained: Path, rng: np.random.Generator) -> None:
    done = finetune(frames(rng), name="ring", parent=untrained, config=QUICK, minutes=5, progress=False)
    assert done.accepted
    assert done.said.startswith("ring is registered (loss of held-out photons ")
    assert "12 of 12 steps" in done.said
    found = registry.entry("ring")
    assert found.sha256 == load_model("ring").sha256 == done.denoiser.model.sha256
    lineage = found.record["lineage"]
    assert lineage["parent"] == load_model(untrained).identity()
    assert lineage["recipe"]["seed"] == 0
    assert lineage["frames"]["held_out"] == 4
    assert found.record["figures"] == done.figures
    for told in ("untrained", load_model(untrained).sha256, "false features", "12 tuned on, 4 held out"):
        assert told in found.card


def test_where_there_was_no_time_to_tune_that_is_said(untrained: Path, rng: np.random.Generator) -> None:
    """The message does not say that the tuned model is no better."""
    done = finetune(frames(rng), name="ring", parent=untrained, config=QUICK, minutes=1e-4, progress=False)
    assert not done.accepted
    assert "no tuning step was made" in done.said
    assert "give more minutes" in done.said
    assert "not better" not in done.said


@pytest.mark.train
def test_where_it_is_no_better_the_parent_is_kept(untrained: Path, rng: np.random.Generator) -> None:
    """In words and numbers, and nothing is registered."""
    done = finetune(
        frames(rng), name="ring", parent=untrained, config=replace(QUICK, learning_rate=0.0), progress=False
    )
    assert not done.accepted
    assert "untrained is kept, nothing is registered: the tuned model is not better" in done.said
    assert "difference +0.00000 +- 0.00000 on 4 frames" in done.said
    assert registry.registered() == []
    assert done.denoiser.model.sha256 == load_model(untrained).sha256


@pytest.mark.train
def test_ctrl_c_leaves_nothing(untrained: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def interrupted(*_: Any) -> float:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return 1e-3

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "scheduled_rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(frames(rng), name="ring", parent=untrained, config=QUICK, progress=False)
    assert registry.registered() == []
    assert finetune(frames(rng), name="ring", parent=untrained, config=QUICK, progress=False).accepted


@pytest.mark.train
def test_a_better_exposed_reference_is_the_target(untrained: Path, rng: np.random.Generator) -> None:
    low, high = frames(rng, scale=0.5), frames(rng, scale=20.0)
    done = finetune(low, name="pairs", reference=high, parent=untrained, config=QUICK, progress=False)
    assert done.accepted
    with pytest.raises(SymDenoiseError, match="must pair the frames one by one"):
        finetune(low, name="no", reference=high[1:], parent=untrained)
    # Another scene is no reference.
    with pytest.raises(SymDenoiseError, match="0 frames that show the scene of their reference"):
        finetune(low, name="no", reference=np.roll(high, 9, axis=1), parent=untrained)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"name": "fast"}, "the package has a model of this name"),
        ({"name": "no name"}, "must be a letter"),
        ({"minutes": 0.0}, "it must be positive"),
        ({"frames": "few"}, "8 are needed"),
        ({"frames": "dark"}, "8 are needed"),
        ({"frames": "fractions"}, "whole numbers"),
        ({"symmetry": "6mm"}, "counts are not interpolated"),
    ],
)
def test_invalid_arguments_are_refused_before_frames_are_read(
    rng: np.random.Generator, untrained: Path, change: dict[str, Any], rule: str
) -> None:
    stack: Any = frames(rng)
    kind = change.pop("frames", None)
    stack = {None: stack, "few": stack[:7], "dark": 0 * stack, "fractions": stack + 0.5}[kind]
    with pytest.raises(SymDenoiseError, match=rule):
        finetune(stack, **{"name": "ring", "parent": untrained, **change})


# The commands


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A catalogue with two scans of low exposure and one of high; and their uids."""
    home, rng = tmp_path_factory.mktemp("catalog"), np.random.default_rng(3)
    with embedded_catalog(home) as client:
        scans = {"low": 0.5, "again": 0.5, "high": 20.0}
        yield (
            client,
            {
                name: write_run(client["raw"], home / "frames", {"det": frames(rng, 10, scale)}, start={"sample": name})
                for name, scale in scans.items()
            },
        )


@pytest.fixture
def served(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Client, address and uids; the key is where the command looks for it."""
    client, uids = server
    monkeypatch.setenv("TILED_API_KEY", client.context.api_key)
    return client, str(client.context.api_uri), uids


def recipe_file(folder: Path) -> Path:
    path = folder / "quick.toml"
    path.write_text(
        'name = "quick"\nversion = "1"\nsteps = 12\nbatch = 3\nlearning_rate = 1e-2\nwarmup = 1\n'
        "real_share = 0.67\npeakless_share = 0.6\nbfloat16 = false\nchannels = [8, 8]\n"
    )
    return path


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.train
@pytest.mark.server
def test_the_command_tunes_to_runs_of_a_catalogue(served: Any, untrained: Path, tmp_path: Path) -> None:
    """The tuned model then denoises a run, which names it by sha256."""
    client, uri, uids = served
    options = ["--model", str(untrained), "--recipe", str(recipe_file(tmp_path)), "--threads", "1"]
    said = invoked("finetune", uri, uids["low"], uids["again"][:8], "--name", "mymodel", *options)
    assert said.startswith("mymodel is registered")
    assert registry.entry("mymodel").record["lineage"]["runs"] == [uids["low"], uids["again"]]
    assert "tuned from untrained" in invoked("models", "list")
    assert uids["low"] in invoked("models", "show", "mymodel")
    denoiser = Denoiser.pretrained("mymodel", device="cpu", threads=1)
    run = replay(client["raw"][uids["low"]], into=client["denoised"], denoiser=denoiser, symmetry="1")
    assert run.start["provenance"]["model"]["sha256"] == registry.entry("mymodel").sha256
    np.testing.assert_array_equal(recompute(run, 0)["intensity"].values, np.asarray(run["primary"]["det"][0]))

    paired = ["finetune", uri, uids["low"], "--reference", uids["high"], "--name", "pairs", "--json", *options]
    assert isinstance(json.loads(invoked(*paired))["registered"], bool)


@pytest.mark.train
@pytest.mark.server
def test_the_command_says_that_the_parent_is_kept(served: Any, untrained: Path, tmp_path: Path) -> None:
    """With exit status 0."""
    _, uri, uids = served
    recipe = recipe_file(tmp_path)
    recipe.write_text(recipe.read_text().replace("1e-2", "0.0"))
    options = ["--model", str(untrained), "--recipe", str(recipe), "--threads", "1"]
    said = invoked("finetune", uri, uids["low"], "--name", "mymodel", *options)
    assert "untrained is kept, nothing is registered" in said
    assert registry.registered() == []


@pytest.mark.train
@pytest.mark.server
def test_the_command_fails_where_there_was_no_time_for_a_step(
    served: Any, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit status 1, and a word before it begins."""
    _, uri, uids = served
    monkeypatch.setattr(module, "finetune", lambda runs, **options: finetune(runs, **options | {"minutes": 1e-4}))
    options = ["--model", str(untrained), "--recipe", str(recipe_file(tmp_path)), "--threads", "1", "--minutes", "0.1"]
    result = CliRunner().invoke(app, ["finetune", uri, uids["low"], "--name", "mymodel", *options])
    assert result.exit_code == 1
    assert "--minutes 0.1 is little" in result.stderr
    assert "no tuning step was made" in result.stdout


@pytest.mark.train
@pytest.mark.server
def test_training_takes_the_runs_of_a_catalogue(served: Any, tmp_path: Path) -> None:
    _, uri, uids = served
    recipe = recipe_file(tmp_path)
    recipe.write_text(recipe.read_text().replace("steps = 12", "steps = 2"))
    out = ["--output", str(tmp_path / "out")]
    said = invoked("train", str(recipe), *out, "--from", uri, "--query", "sample=low")
    trained = json.loads(Path(said.strip()).with_suffix(".json").read_text())
    assert trained["training"]["real_sets"] == [uids["low"]]
    with pytest.raises(SymDenoiseError, match="none of 0 raw runs has images"):
        invoked("train", str(recipe), *out, "--from", uri, "--query", "sample=gold")
    with pytest.raises(SymDenoiseError, match="must be KEY=VALUE"):
        invoked("train", str(recipe), *out, "--from", uri, "--query", "sample")
    with pytest.raises(SymDenoiseError, match="add --from"):
        invoked("train", str(recipe), *out, "--query", "sample=low")


@pytest.mark.server
def test_frames_of_many_runs_fit_into_memory(served: Any) -> None:
    client, _, uids = served
    runs = client["raw"].values()
    found = list(catalogue_frames(runs))
    assert {each.name for each in found} == set(uids.values())
    assert all(each.counts.shape == (10, *SHAPE) for each in found)
    size = SHAPE[0] * SHAPE[1] * 2
    few = list(catalogue_frames(runs, limit=7 * size))
    assert 3 <= sum(len(each.counts) for each in few) <= 7
    assert len(few) == 3
    (one,) = catalogue_frames(runs, limit=size)
    assert len(one.counts) == 1


@pytest.mark.train
def test_the_bench_prints_a_line_for_each_set_and_mode(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    data = tmp_path / "data"
    data.mkdir()
    for name, role in (("ring", "train"), ("unseen", "test")):
        with h5py.File(data / f"{name}.h5", "w") as file:
            file["counts"], file["mask"] = frames(rng, 8, 5.0), np.zeros(SHAPE, np.uint8)
            file.attrs.update({"role": role, "noise": "counting", "symmetry": "1"})
    figures = bench_adapt(
        data, json_path=tmp_path / "b.json", model=None, sets=None, level=1.0, minutes=0.0001, threads=1
    )
    assert [(row["set"], row["mode"]) for row in figures] == [("ring", "own frames"), ("ring", "reference")]
    assert json.loads((tmp_path / "b.json").read_text())["results"] == figures
    assert figures[0]["counts_per_pixel"] == pytest.approx(1.0, rel=0.05)
    assert "ring" in capsys.readouterr().out
    assert module.MINUTES < 5
