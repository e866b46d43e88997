"""`mlkit --help` against importing what it is made of.

Bar: at most 2 times `python -c "import typer, rich"`.

    python -m benchmarks.help --rounds 20
"""

from __future__ import annotations

import sys

from benchmarks.process import arguments, interleaved, ratios, report, spread, timed

HELP = "mlkit --help"
PEER = 'python -c "import typer, rich"'


def main() -> None:
    options = arguments(__doc__ or "", rounds=20).parse_args()
    runs = {
        HELP: lambda: timed([sys.executable, "-c", "from mlflowkit.cli import main; main()", "--help"]),
        PEER: lambda: timed([sys.executable, "-c", "import typer, rich"]),
        "python -c pass": lambda: timed([sys.executable, "-c", "pass"]),
    }
    results = interleaved(runs, options.rounds)
    rows = [{"what": name, "wall": spread([one.seconds for one in found])} for name, found in results.items()]
    rows[0] |= {"ratio": ratios(results, HELP, PEER), "bar": "<= 2x"}
    report("help", rows, options.out)


if __name__ == "__main__":
    main()
