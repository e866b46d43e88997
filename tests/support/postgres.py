"""A PostgreSQL server of a test session: a real one, on a free port of this machine, with a password."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD = "loans_reader", "canary-postgres-pw"


@dataclass(frozen=True)
class PostgresServer:
    port: int
    folder: Path
    binaries: Path

    @property
    def url(self) -> str:
        return f"postgresql://127.0.0.1:{self.port}/postgres"

    def run(self, *statements: str) -> None:
        """Run statements as the superuser, each in a transaction of its own."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres", autocommit=True
        ) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]


def _as_owner(folder: Path) -> dict[str, int]:
    """The server refuses to run as root: then as nobody, who owns the folder."""
    if os.geteuid() != 0:
        return {}
    owner = pwd.getpwnam("nobody")
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    return {"user": owner.pw_uid, "group": owner.pw_gid}


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server; skips where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not found[-1].is_file():
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    binaries = found[-1].parent
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    folder = Path(tempfile.mkdtemp(prefix="mlkit-postgres-"))
    try:
        owner = _as_owner(folder)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = folder / "data"
        common = {"check": True, "capture_output": True, "timeout": 60, "cwd": folder, **owner}
        options = ["-U", USER, "--pwfile", str(secret), "--auth", "scram-sha-256", "--no-sync", "-E", "UTF8"]
        subprocess.run([binaries / "initdb", "-D", data, "--locale=C.UTF-8", *options], **common)  # type: ignore[call-overload]
        server = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c max_connections=20"
        start = [binaries / "pg_ctl", "-D", data, "-w", "-t", "50", "-l", folder / "log", "-o", server, "start"]
        subprocess.run(start, **{**common, "capture_output": False, "stdout": subprocess.DEVNULL})  # type: ignore[call-overload]
        try:
            yield PostgresServer(port, folder, binaries)
        finally:
            stop = [binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
            subprocess.run(stop, **{**common, "check": False})  # type: ignore[call-overload]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
