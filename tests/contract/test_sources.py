"""The built-in data sources pass the contract of sources."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mlflowkit.adapters.arrow import ArrowTables
from mlflowkit.stages.sources import CsvSource, DataSource, ParquetSource, PythonSource
from mlflowkit.testing import SourceContract

TABLE = pd.DataFrame({"id": [1, 2, 3], "town": ["Ulm", None, "Rom"], "price": [1.5, None, 3.0]})
CHANGED = TABLE.assign(price=[1.5, 2.0, 4.0])


class TestCsvSource(SourceContract):
    def source(self) -> DataSource:
        return CsvSource(kind="csv", path="prices.csv")

    def tables(self) -> ArrowTables:
        return ArrowTables()

    def prepare(self, folder: Path) -> None:
        TABLE.to_csv(folder / "prices.csv", index=False)

    def change(self, folder: Path) -> None:
        CHANGED.to_csv(folder / "prices.csv", index=False)


class TestParquetSource(TestCsvSource):
    def source(self) -> DataSource:
        return ParquetSource(kind="parquet", path="prices/*.parquet")

    def prepare(self, folder: Path) -> None:
        (folder / "prices").mkdir()
        TABLE.to_parquet(folder / "prices" / "a.parquet", index=False)

    def change(self, folder: Path) -> None:
        TABLE.to_parquet(folder / "prices" / "b.parquet", index=False)


class TestPythonSource(SourceContract):
    def source(self) -> DataSource:
        return PythonSource(kind="python", function="load:prices", args={"unit": "EUR"}, files=["prices.csv"])

    def prepare(self, folder: Path) -> None:
        code = "import pandas as pd\n\n\ndef prices(unit):\n    return pd.read_csv({!r}).assign(unit=unit)\n"
        (folder / "load.py").write_text(code.format(str(folder / "prices.csv")))
        TABLE.to_csv(folder / "prices.csv", index=False)

    def change(self, folder: Path) -> None:
        CHANGED.to_csv(folder / "prices.csv", index=False)
