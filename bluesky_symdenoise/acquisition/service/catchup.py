"""Search for raw runs that have no complete derived run, and completion of them."""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tiled.queries import Key
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.deliver.claim import Claim
from bluesky_symdenoise.acquisition.deliver.spool import Spool
from bluesky_symdenoise.acquisition.live.backlog import documents_in, foresee, left_files, recipes_left
from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.earlier import (
    as_begun,
    earlier_recipes,
    is_computable,
    same_settings,
    with_recipe,
)
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.given import GivenRun
from bluesky_symdenoise.acquisition.runs.replaced import Places, Replaced
from bluesky_symdenoise.acquisition.runs.stored import NothingToDenoiseError, StoredRun, stored_run
from bluesky_symdenoise.catalog.store.containers import run_in
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.catalog.store.lock import HeldError
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from distributed import Client
    from tiled.client.container import Container

log = logging.getLogger("bluesky_symdenoise")


#: Outcome of a run that another process is writing.
_HELD = "left alone: a living process writes it"


@dataclass(frozen=True)
class Unfinished:
    """A raw run without a complete derived run.

    Attributes
    ----------
    raw
        The run.
    state
        State of the derived run, in words.
    ready
        Whether the run can be finished now: it has ended, or counts as ended.
    begun
        Derived run that was begun before an upgrade, with the same settings and model; None if there is none.
    """

    raw: BlueskyRun
    state: str
    ready: bool = True
    begun: BlueskyRun | None = None

    @property
    def uid(self) -> str:
        """Uid of the raw run."""
        return str(self.raw.start["uid"])


@dataclass(frozen=True)
class Outcome:
    """Result of finishing one run.

    Attributes
    ----------
    ok
        Whether nothing is left to do here: the derived run is complete, a living process writes it, or the run has no
        image.
    frames, failed
        Numbers of frames written as denoised, and as NaN.
    """

    uid: str
    state: str
    result: str
    ok: bool
    frames: int = 0
    failed: int = 0
    seconds: float = 0.0


def unfinished(
    raw: Container,
    work: Work,
    *,
    since: float | None = None,
    older_than: float | None = None,
    redo_older: bool = False,
) -> Iterator[Unfinished]:
    """Yield raw runs that lack a complete derived run of this recipe, oldest first.

    A run that other weights, or another algorithm, denoised with the same settings is complete, whether it stores its
    pixels or is computed when it is read: an upgrade denoises nothing again by itself.

    Parameters
    ----------
    raw
        Catalogue of the raw runs.
    work
        Work whose recipe and container define what is complete.
    since
        Only runs that began after this time, in seconds since 1970.
    older_than
        Seconds after which runs without a stop document count as ended; None: never. Until then they are not ready.
    redo_older
        Take runs that were denoised before an upgrade, too.
    """
    same = work.container.search(Key("provenance.recipe_sha256") == work.recipe.sha256)
    derived = {run.start["uid"]: run for run in same.values()}
    older: dict[str, list[BlueskyRun]] | None = {} if redo_older else None
    for run in raw.sort(("start.time", 1)).values():
        start, stop = run.start, run.metadata.get("stop")
        # Filter here and not by a query: Tiled compares times in SQLite as text.
        if "raw_uid" in start or (since is not None and start["time"] < since):
            continue
        if not stop and (older_than is None or clock.time() - start["time"] < older_than):
            yield Unfinished(run, "without a stop document: being acquired, or interrupted", ready=False)
            continue
        made = derived.get(work.recipe.derived_uid(start["uid"]))
        if made is None:
            if older is None:
                older = _before_an_upgrade(work)
            before = older.get(start["uid"], ())
            if not any(Claim(raw_stop=stop).stands(each) for each in before):
                begun = next((each for each in before if _goes_on(each, work)), None)
                yield Unfinished(run, "not denoised" if begun is None else _begun(begun), begun=begun)
        elif not Claim(raw_stop=stop).stands(made):
            yield Unfinished(run, _state(made))


def _before_an_upgrade(work: Work) -> dict[str, list[BlueskyRun]]:
    """Return derived runs whose recipe differs in weights and algorithm only, by the uid of their raw run."""
    found: dict[str, list[BlueskyRun]] = {}
    for run in work.container.search(Key("provenance.recipe_sha256") != work.recipe.sha256).values():
        recipe = run.start.get("provenance", {}).get("recipe", {})
        if same_settings(recipe, work.recipe):
            found.setdefault(str(run.start.get("raw_uid")), []).append(run)
    return found


def _goes_on(run: BlueskyRun, work: Work) -> bool:
    """Return whether a derived run, begun before an upgrade, is the present model's and can be finished as begun."""
    provenance = run.start["provenance"]
    return provenance["model"]["name"] == work.denoiser.model.name and is_computable(provenance["recipe"])


def begun_before(work: Work, raw_uid: str) -> BlueskyRun | None:
    """Return a derived run of a raw run that was begun before an upgrade and is not complete; None if there is none."""
    for run in work.container.search(Key("raw_uid") == raw_uid).values():
        recipe = run.start.get("provenance", {}).get("recipe", {})
        earlier = recipe != work.recipe.to_dict() and same_settings(recipe, work.recipe)
        if earlier and not Claim().stands(run) and _goes_on(run, work):
            return run
    return None


def _begun(derived: BlueskyRun) -> str:
    recipe = derived.start["provenance"]["recipe"]
    return f"{_state(derived)}, begun with algorithm {recipe['algorithm']}, weights {recipe['model_sha256'][:12]}"


def _state(derived: BlueskyRun) -> str:
    stop = derived.metadata.get("stop")
    if not stop:
        return "cut off"
    failed = sum(each["frames"] for each in stop["provenance"]["failures"])
    return f"{failed} frames failed" if failed else "ended before the raw run"


def finish(
    item: Unfinished,
    work: Work,
    *,
    older_than: float | None = None,
    finished_frame: Callable[[str | None], None] = lambda _: None,
) -> Outcome:
    """Finish one run, with the algorithm and weights with which it was begun; see `attempt`."""
    work = work if item.begun is None else as_begun(work, item.begun)
    stored = stored_run(item.raw, columns=work.beamline.columns)
    return attempt(stored, work, was=item.state, older_than=older_than, finished_frame=finished_frame)


def finish_left(work: Work, *, older_than: float | None = None) -> Iterator[Outcome]:
    """Finish the runs whose documents a callback left on disk when its process ended; see `attempt` for each.

    Runs that can only be finished later stay there: a run without its stop document until that is in the catalogue, or
    until `older_than`. Those that an earlier version began are finished with its algorithm and weights.
    """
    for each in works_left(work):
        for file, _ in left_files(each):
            replaced = Replaced()
            foresee([file.path], Places(), replaced)
            run = GivenRun(((name, doc) for _, name, doc in documents_in(file.path)), replaced=replaced)
            outcome = attempt(run, each, was="left by a process that ended", older_than=older_than)
            if outcome.ok and outcome.result != _HELD:
                file.remove()
            else:
                file.close()
            yield outcome


def works_left(work: Work) -> Iterator[Work]:
    """Yield the work, and that of each earlier recipe with its settings of which documents were left on disk."""
    yield work
    left = recipes_left(work)
    for sha256, recipe in earlier_recipes(work).items():
        if sha256 in left:
            yield with_recipe(work, recipe, model=work.denoiser.model.name)


def attempt(
    run: StoredRun,
    work: Work,
    *,
    was: str,
    older_than: float | None = None,
    force: bool = False,
    finished_frame: Callable[[str | None], None] = lambda _: None,
    scheduler: Client | None = None,
) -> Outcome:
    """Replay one run; an error is returned in the outcome, and only a server that is away raises.

    Raises
    ------
    httpx.TransportError
        If the server cannot be reached.
    """
    frames, reasons, begun = 0, list[str](), clock.monotonic()

    def count(reason: str | None) -> None:
        nonlocal frames
        if reason is None:
            frames += 1
        else:
            reasons.append(reason)
        finished_frame(reason)

    ok = True
    uid = run.start["uid"]
    try:
        replay_with(work, run, older_than=older_than, force=force, finished_frame=count, scheduler=scheduler)
    except HeldError:
        result = _HELD
    except NothingToDenoiseError as error:
        result = error.rule
    except (SymDenoiseError, httpx.HTTPStatusError, OSError, RuntimeError, KeyError, ValueError) as error:
        ok, result = False, (str(error) or type(error).__name__).splitlines()[0]
        log.error("run %s is not finished: %s", uid[:8], result, exc_info=log.isEnabledFor(logging.DEBUG))
    else:
        ok, result = not reasons, reasons[0] if reasons else "complete"
    return Outcome(
        uid=uid,
        state=was,
        result=result,
        ok=ok,
        frames=frames,
        failed=len(reasons),
        seconds=clock.monotonic() - begun,
    )


def tidy(work: Work) -> None:
    """Clean up complete runs whose writer died between the stop document and its own cleaning up."""
    for spool in Spool.left(work.folder):
        run = run_in(work.container, spool.uid)
        if run is not None and Claim().stands(run):
            spool.remove()
        spool.release()
    for file, head in left_files(work):
        made = run_in(work.container, head.derived_uid)
        if made is not None and Claim().stands(made):
            file.remove()
        else:
            file.close()
    for path in work.folder.rglob("*.journal"):
        run = run_in(work.container, path.stem)
        if run is None or not Claim().stands(run):
            continue
        sources = [source for stream in run.values() for key in stream for source in _sources(stream[key])]
        keep = {Path(path_from_uri(asset.data_uri)) for source in sources for asset in source.assets}
        try:
            journal = Journal(path, made_with={})
        except HeldError:
            continue
        journal.tidy(keep=keep)


def _sources(node: Any) -> list[Any]:
    # A column of the event table is an array client, too, but without a data source.
    return list(node.data_sources() or ())
