"""The client of a Dask cluster: whether there is one, what its workers are, and what became of a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bluesky_symdenoise.acquisition.cluster.partition import Machine
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.denoiser.settings import DenoiserSettings, RecordedSettings
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from distributed import Client, Future

    from bluesky_symdenoise.acquisition.cluster.partition import PackedSetup

#: Seconds allowed for a scheduler to answer, and for a cluster without workers to get one.
ANSWER_S, PATIENCE_S = 10.0, 60.0


def checked_client(client: object) -> Client:
    """Return the client of a cluster.

    Raises
    ------
    SymDenoiseError
        If this is not a `dask.distributed.Client`, or dask.distributed is not installed.
    """
    _require_distributed()
    from distributed import Client

    if not isinstance(client, Client):
        raise SymDenoiseError(
            f"scheduler of type {type(client).__name__}",
            rule="it is not a client of a Dask cluster",
            remedy="give dask.distributed.Client(ADDRESS)",
        )
    return client


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Return a client of the cluster whose scheduler listens at this address, such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    SymDenoiseError
        If no scheduler answers, or dask.distributed is not installed.
    """
    _require_distributed()
    from distributed import Client

    try:
        client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SymDenoiseError(
            f"Dask scheduler {address}",
            rule=f"it does not answer ({(str(error) or type(error).__name__).splitlines()[0]})",
            remedy="check the address, and that `dask scheduler` runs there",
        ) from error
    with client:
        yield client


def _require_distributed() -> None:
    if find_spec("distributed") is None:
        raise SymDenoiseError(
            "a Dask cluster",
            rule="dask.distributed is not installed",
            remedy="pip install 'bluesky-symdenoise[dask]', here and on the workers",
        )


def prepared(client: Client, work: Work) -> tuple[RecordedSettings, Machine]:
    """Return the model as the workers load it, and what one worker reports about itself.

    Raises
    ------
    SymDenoiseError
        If the cluster has no worker, or the worker does not have the model.
    """
    from distributed import TimeoutError as NoWorkerError

    denoiser = work.denoiser
    asked = work.model
    device, threads = (asked.device, asked.threads) if isinstance(asked, DenoiserSettings) else asked.asked
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except NoWorkerError as error:
        raise SymDenoiseError(
            f"Dask cluster {client.scheduler.address}",
            rule=f"it had no worker for {PATIENCE_S:g} s",
            remedy="start workers: dask worker ADDRESS",
        ) from error
    model = RecordedSettings(
        model=denoiser.model.name,
        recorded=denoiser.model.sha256,
        device=device,
        # If no number was asked for, use each worker's share of its computer.
        threads=threads or min(client.nthreads().values()),
        dtype=denoiser.dtype,
        defects=denoiser.defects,
        views=denoiser.views,
        sums=denoiser.sums,
        algorithm=denoiser.algorithm,
    )
    future = client.submit(Machine.here, model, key=f"symdenoise-machine-{uuid4().hex}")
    return model, result_of(future, "the model")


def kept_on_cluster(client: Client, packed: PackedSetup) -> Future:
    """Return a setup held as the result of a task: unlike scattered data, it is recomputed if its worker dies."""
    import dask

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "2GiB"}):
        return client.submit(_itself, packed, key=f"symdenoise-setup-{packed.sha256[:16]}-{uuid4().hex[:8]}")


def _itself(packed: PackedSetup) -> PackedSetup:
    return packed


def result_of(future: Future, what: str) -> Any:
    """Return the result of a task.

    Raises
    ------
    SymDenoiseError
        If the task failed, its worker could not receive it, or too many workers died while running it.
    """
    try:
        return future.result()
    except SymDenoiseError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise SymDenoiseError(
            f"{what} on a Dask worker",
            rule=f"it failed ({type(error).__name__}: {said})",
            remedy="check the worker's log and that it has this version of bluesky-symdenoise, then replay the run "
            "(finished rows are kept)",
        ) from error
