"""The environments of the protocol's real clients and checkers, and of servers to compare with, which do not fit ours.

    python -m benchmarks.clients

tests/contract/test_protocol_clients.py asks a gateway with the clients', which this command makes, and skips those that
are not there. benchmarks.infer makes those of the servers when it needs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"
PACKAGES = {
    "clients": ("tritonclient[http,grpc]==2.73.0", "kserve==0.21.0"),
    # its worker processes fail to start with a newer uvloop
    "mlserver": ("mlserver==1.7.1", "onnxruntime==1.26.0", "uvloop==0.21.0"),
    "schemathesis": ("schemathesis==4.32.0",),
    "litserve": ("litserve==0.2.19", "onnxruntime==1.26.0"),
    "bentoml": ("bentoml==1.4.39", "onnxruntime==1.26.0"),
    "evidently": ("evidently==0.7.23", "pyarrow>=20"),
    "nannyml": ("nannyml==0.13.1", "setuptools<81"),
}
CLIENTS = ("clients", "mlserver", "schemathesis")


def make(name: str) -> Path:
    """An environment that has its packages; installed unless it is complete."""
    home = CACHE / name
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        quiet = ("--quiet", "--disable-pip-version-check")
        subprocess.run([home / "bin" / "python", "-m", "pip", "install", *quiet, *PACKAGES[name]], check=True)
        (home / "complete").touch()
    return home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; without, the clients'")
    for name in parser.parse_args().names or CLIENTS:
        if name not in PACKAGES:
            parser.error(f"{name} is none of {', '.join(PACKAGES)}")
        print(make(name), file=sys.stderr)


if __name__ == "__main__":
    main()
