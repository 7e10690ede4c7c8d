"""A private PostgreSQL server, for measurements and tests that need a real one."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bluesky_symdenoise.errors import SymDenoiseError

#: User who runs the server if we are root, as PostgreSQL refuses to run as root.
_UNPRIVILEGED = "postgres"
_ROLE = "symdenoise"
_TRIES = 3
# The data do not outlive the process, so they need not survive a power cut.
_SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_wal_size=4GB")


@contextmanager
def private_postgres(directory: str | Path) -> Iterator[str]:
    """Run a new, empty PostgreSQL while the context lasts, and yield the URI of its database.

    It listens on a free port of 127.0.0.1 and asks for a random password, which the URI holds. Its data lie in a
    temporary folder inside `directory`, or of the system where PostgreSQL's user cannot get there (as root, which may
    not run PostgreSQL, the user is ``postgres``); they are removed at the end.

    Parameters
    ----------
    directory
        A folder with room for the data.

    Yields
    ------
    str
        ``postgresql+asyncpg://...``, as Tiled takes it.

    Raises
    ------
    SymDenoiseError
        If PostgreSQL is not installed, or does not start.
    """
    initdb, pg_ctl = (_binary(name) for name in ("initdb", "pg_ctl"))
    user = _user()
    home = _home(Path(directory).resolve(), user)
    try:
        password = secrets.token_hex(16)
        secret = home / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if user is not None:
            shutil.chown(secret, user)
        data = home / "data"
        command: list[str | Path] = [initdb, "-D", data, "-U", _ROLE, "--auth=scram-sha-256", f"--pwfile={secret}"]
        made = _run([*command, "--encoding=UTF8", "--locale=C", "--no-sync"], user=user, cwd=home)
        if made.returncode:
            raise _failed("initdb", made.stdout)
        secret.unlink()
        port = _started(pg_ctl, data, user=user)
        try:
            yield f"postgresql+asyncpg://{_ROLE}:{password}@127.0.0.1:{port}/postgres"
        finally:
            # pg_ctl reads the process id from the data folder, so that no other server is stopped.
            _run([pg_ctl, "stop", "-D", data, "-m", "fast", "-w"], user=user, cwd=home)
    finally:
        shutil.rmtree(home)


def _binary(name: str) -> Path:
    """Return a program of PostgreSQL: on the path, or the newest where Debian puts it, which is not on the path."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    installed = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parent.parent.name)
    )
    if not installed:
        raise SymDenoiseError(
            f"PostgreSQL's {name}",
            rule="it is neither on the path nor in /usr/lib/postgresql",
            remedy="install PostgreSQL (Debian: `apt-get install postgresql`)",
        )
    return installed[-1]


def _user() -> str | None:
    """Return the user who runs the server, if not the present one."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_UNPRIVILEGED).pw_name
    except KeyError:
        raise SymDenoiseError(
            "PostgreSQL as root",
            rule=f"it refuses to run so, and there is no user {_UNPRIVILEGED}",
            remedy=f"run this as another user, or make that one: `useradd --system {_UNPRIVILEGED}`",
        ) from None


def _home(directory: Path, user: str | None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if user is None:
        return Path(tempfile.mkdtemp(dir=directory, prefix="postgres-"))
    reachable = _run(["test", "-x", directory], user=user, cwd=Path("/")).returncode == 0
    home = Path(tempfile.mkdtemp(dir=directory if reachable else None, prefix="postgres-"))
    shutil.chown(home, user)
    return home


def _started(pg_ctl: Path, data: Path, *, user: str | None) -> int:
    """Start the server and return its port; try again if another process takes the free port first."""
    log = data.parent / "log"
    for _ in range(_TRIES):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        options = " ".join(f"-c {setting}" for setting in ("listen_addresses=127.0.0.1", f"port={port}", *_SETTINGS))
        # Without a Unix socket: the path of a temporary folder may be too long for one.
        options += " -c unix_socket_directories=''"
        started = _run([pg_ctl, "start", "-D", data, "-w", "-l", log, "-o", options], user=user, cwd=data)
        if started.returncode == 0:
            return port
    raise _failed("pg_ctl start", log.read_text() if log.exists() else started.stdout)


def _run(command: Sequence[str | Path], *, user: str | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    # PGDATA, PGPORT and the like belong to another server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd=cwd,
        env=environment | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _failed(command: str, output: str) -> SymDenoiseError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return SymDenoiseError(
        command,
        rule=f"it failed ({lines[-1] if lines else 'no message'})",
        remedy="see whether that folder has room and whether PostgreSQL runs otherwise",
    )
