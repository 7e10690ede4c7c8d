"""A process that catches up and is killed: it forks one child for each plan that it reads, and says how that ended.

Started with the server's URI and key; one JSON object a line on stdin, one exit status a line on stdout (-9: killed).
It forks because torch takes seconds to import; the children are otherwise what `symdenoise catch-up` is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import h5py
from bluesky_tiled_plugins import TiledWriter
from tiled.client import from_uri
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.service.catchup import finish, tidy, unfinished
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.denoiser.infer import Denoiser

#: Steps at which a plan may kill: where they are in the code.
STEPS: dict[str, tuple[type, str]] = {
    "denoise": (Denoiser, "__call__"),
    "hdf5": (h5py.Dataset, "flush"),
    "journal": (Journal, "enter"),
    "delete": (Container, "delete"),
    "finish": (Journal, "finish"),
    **{
        name: (TiledWriter, "__call__")
        for name in ("start", "descriptor", "stream_resource", "stream_datum", "event", "stop")
    },
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step: str, when: str, nth: int) -> None:
    """Kill this process before or after the nth call of a step."""
    owner, name = STEPS[step]
    original, calls = getattr(owner, name), 0

    def deadly(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += owner is not TiledWriter or args[1] == step
        mine = owner is not TiledWriter or args[1] == step
        if mine and calls == nth and when == "before":
            die()
        result = original(*args, **options)
        if mine and calls == nth:
            die()
        return result

    setattr(owner, name, deadly)


def catch_up(uri: str, key: str, denoiser: Denoiser, *, into: str, directory: str) -> bool:
    """What the command does; True if nothing is left to do."""
    client = from_uri(uri, api_key=key, trust_env=False)
    work = Work.planned(
        client[into],
        activity="catch-up",
        denoiser=denoiser,
        directory=directory,
        mask=None,
        exposure=None,
        symmetry="auto",
        beam_center=None,
        streams=None,
        data_keys=None,
    )
    outcomes = [finish(item, work) for item in unfinished(client["raw"], work)]
    tidy(work)
    for each in outcomes:
        if not each.ok:
            print(each, file=sys.stderr)
    return all(each.ok for each in outcomes)


def child(plan: dict[str, Any], work: Callable[[], bool]) -> None:
    if "seconds" in plan:
        threading.Timer(plan["seconds"], die).start()
    if "step" in plan:
        arm(plan["step"], plan["when"], plan["nth"])
    status = 1
    try:
        status = 0 if work() else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    uri, key = sys.argv[1:]
    denoiser = Denoiser.pretrained(device="cpu", threads=1)
    for line in sys.stdin:
        plan = json.loads(line)
        pid = os.fork()
        if pid == 0:
            target = {"into": plan["into"], "directory": plan["directory"]}
            child(plan, lambda target=target: catch_up(uri, key, denoiser, **target))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
