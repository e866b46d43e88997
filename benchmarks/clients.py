"""The environments of the protocol's real clients and checkers, which do not fit ours.

    python -m benchmarks.clients

tests/contract/test_protocol_clients.py asks a gateway with them, and skips those that are not there. MLServer's is the
one that the benchmarks compare with.
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
    "mlserver": ("mlserver==1.7.1", "onnxruntime==1.26.0"),
    "schemathesis": ("schemathesis==4.32.0",),
}


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
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}; all without")
    for name in parser.parse_args().names or PACKAGES:
        if name not in PACKAGES:
            parser.error(f"{name} is none of {', '.join(PACKAGES)}")
        print(make(name), file=sys.stderr)


if __name__ == "__main__":
    main()
