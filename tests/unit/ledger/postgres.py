"""A PostgreSQL server of the test's own: loopback, an empty folder, a password."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

PASSWORD = "s3cret-w0rd"
PATIENCE_S = 30


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL that is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def _as_postgres() -> list[str]:
    # The server refuses to run as root.
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of its database `postgres`, without password (see PASSWORD)."""
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    home = Path(tempfile.mkdtemp(prefix="ledger-pg-"))
    try:
        password = home / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (home, password):
                shutil.chown(path, "postgres", "postgres")
        data = home / "data"
        subprocess.run(
            [*_as_postgres(), folder / "initdb", "-D", data, "-U", "chat", "--pwfile", password, "--no-sync",
             "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"],
            check=True, capture_output=True, cwd=home,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={home}", "-c", "fsync=off"]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [*_as_postgres(), folder / "postgres", "-D", data, "-p", str(port), *options],
                stdout=log, stderr=log, cwd=home,
            )  # fmt: skip
        try:
            _wait_until_ready(folder, port)
            yield f"postgresql://chat@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(2)  # fast shutdown: sessions are ended
            server.wait(PATIENCE_S)
    finally:
        shutil.rmtree(home)


def _wait_until_ready(folder: Path, port: int) -> None:
    ask: list[str | Path] = [folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "5"]
    for _ in range(PATIENCE_S * 10):
        if subprocess.run(ask, check=False).returncode == 0:
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise TimeoutError("PostgreSQL did not start")


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, password=PASSWORD, autocommit=True) as connection:
        connection.execute(statement.encode())
