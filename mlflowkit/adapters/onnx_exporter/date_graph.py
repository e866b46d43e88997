"""The features of dates in ONNX operators: the arithmetic of `mlflowkit.features.dates.date_parts`, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from mlflowkit.adapters.onnx_exporter.graph_parts import GraphPart
from mlflowkit.features.dates.date_parts import (
    DAY,
    PERIODS,
    SHIFT_DAYS,
    WEEKDAY_SHIFT,
    DateFeature,
    cycle_table,
)
from mlflowkit.features.dates.date_reading import DATES_TENSOR, EARLIEST, LATEST


def date_features(part: GraphPart, features: Sequence[DateFeature]) -> str:
    """Add the nodes from DATES_TENSOR, double [rows, columns], to the returned tensor, float [rows, features]."""
    graph = _DateGraph(part)
    valid, present = graph.valid_dates()
    parts = graph.civil_parts(present) if any(feature.name != "age" for feature in features) else {}
    missing = part.constant("dates/missing", np.nan, np.float32)
    columns = []
    for index, feature in enumerate(features):
        name = f"dates/{index}"
        known = graph.column(valid, feature.column)
        if feature.name == "age":
            values = graph.age(present, feature, name)
            if feature.other is not None:
                part.add("And", [known, graph.column(valid, feature.other)], known := f"{name}/known")
        else:
            values = graph.part_values(parts, feature, name)
        part.add("Where", [known, values, missing], f"{name}/feature")
        columns.append(f"{name}/feature")
    if len(columns) == 1:
        return columns[0]
    part.add("Concat", columns, "dates/features", axis=1)
    return "dates/features"


class _DateGraph:
    """Writes arithmetic; constants and columns are shared."""

    def __init__(self, part: GraphPart) -> None:
        self._part = part
        self._constants: dict[tuple[float, str], str] = {}
        self._columns: dict[tuple[str, int], str] = {}

    def valid_dates(self) -> tuple[str, str]:
        """Which cells hold a date, bool; and the seconds, with 0 in place of the others."""
        part = self._part
        part.add("GreaterOrEqual", [DATES_TENSOR, self._number(EARLIEST, "f8")], "dates/from")
        part.add("Less", [DATES_TENSOR, self._number(LATEST, "f8")], "dates/until")
        part.add("And", ["dates/from", "dates/until"], "dates/valid")
        part.add("Where", ["dates/valid", DATES_TENSOR, self._number(0, "f8")], "dates/present")
        return "dates/valid", "dates/present"

    def civil_parts(self, present: str) -> dict[str, str]:
        """int64 [rows, columns] of each part; see `date_parts.civil_parts`."""
        self._part.add("Floor", [present], "dates/floor")
        self._part.add("Cast", ["dates/floor"], "dates/whole", to=TensorProto.INT64)
        shifted = self._do("Add", "dates/whole", SHIFT_DAYS * DAY, "dates/shifted")
        days = self._do("Div", shifted, DAY, "dates/days")
        era = self._do("Div", days, 146_097, "dates/era")
        of_era = self._minus_product(days, era, 146_097, "dates/of_era")
        leaps = self._do("Sub", of_era, self._do("Div", of_era, 1460, "dates/fours"), "dates/leaps")
        leaps = self._do("Add", leaps, self._do("Div", of_era, 36_524, "dates/hundreds"), "dates/leaps_hundreds")
        leaps = self._do("Sub", leaps, self._do("Div", of_era, 146_096, "dates/eras"), "dates/leaps_eras")
        year_of_era = self._do("Div", leaps, 365, "dates/year_of_era")
        of_year = self._minus_product(of_era, year_of_era, 365, "dates/of_year_all")
        of_year = self._do("Sub", of_year, self._do("Div", year_of_era, 4, "dates/year_fours"), "dates/of_year_fours")
        of_year = self._do("Add", of_year, self._do("Div", year_of_era, 100, "dates/year_hundreds"), "dates/of_year")
        months = self._do("Add", self._do("Mul", of_year, 5, "dates/five_days"), 2, "dates/month_days")
        from_march = self._do("Div", months, 153, "dates/from_march")
        next_year = self._do("Div", from_march, 10, "dates/next_year")
        year = self._do("Add", self._do("Mul", era, 400, "dates/era_years"), year_of_era, "dates/march_year")
        month = self._do("Add", from_march, 3, "dates/month_all")
        before = self._do("Add", self._do("Mul", from_march, 153, "dates/days_months"), 2, "dates/days_before")
        day = self._do("Sub", of_year, self._do("Div", before, 5, "dates/first_day"), "dates/day_before")
        weekday = self._do("Add", days, WEEKDAY_SHIFT, "dates/week_days")
        return {
            "year": self._do("Add", year, next_year, "dates/year"),
            "month": self._minus_product(month, next_year, 12, "dates/month"),
            "day": self._do("Add", day, 1, "dates/day"),
            "weekday": self._do("Mod", weekday, 7, "dates/weekday"),
            "hour": self._do("Div", self._minus_product(shifted, days, DAY, "dates/of_day"), 3600, "dates/hour"),
        }

    def part_values(self, parts: dict[str, str], feature: DateFeature, name: str) -> str:
        """A part as float, or its place on a circle; float [rows, 1]."""
        part = self._part
        if feature.name in parts:
            part.add("Cast", [self.column(parts[feature.name], feature.column)], f"{name}/part", to=TensorProto.FLOAT)
            return f"{name}/part"
        base = feature.name.rpartition("_")[0]
        codes = self.column(parts[base], feature.column)
        if PERIODS[base][0]:
            codes = self._do("Sub", codes, PERIODS[base][0], f"{name}/code")
        table = part.constant(f"{name}/table", cycle_table(feature.name), np.float32)
        part.add("Gather", [table, codes], f"{name}/cycle", axis=0)
        return f"{name}/cycle"

    def age(self, present: str, feature: DateFeature, name: str) -> str:
        """Seconds since another date, divided in double precision; float [rows, 1]."""
        part = self._part
        since = self._number(feature.since, "f8") if feature.other is None else self.column(present, feature.other)
        part.add("Sub", [self.column(present, feature.column), since], f"{name}/seconds")
        part.add("Div", [f"{name}/seconds", self._number(feature.unit, "f8")], f"{name}/units")
        part.add("Cast", [f"{name}/units"], f"{name}/age", to=TensorProto.FLOAT)
        return f"{name}/age"

    def column(self, matrix: str, index: int) -> str:
        """One column of a matrix; [rows, 1]."""
        if (matrix, index) not in self._columns:
            at = self._part.constant(f"{matrix}/{index}/at", [index], np.int64)
            self._part.add("Gather", [matrix, at], f"{matrix}/{index}/column", axis=1)
            self._columns[matrix, index] = f"{matrix}/{index}/column"
        return self._columns[matrix, index]

    def _do(self, operator: str, left: str, right: str | int, output: str) -> str:
        other = right if isinstance(right, str) else self._number(right, "i8")
        self._part.add(operator, [left, other], output)
        return output

    def _minus_product(self, value: str, factor: str, times: int, output: str) -> str:
        return self._do("Sub", value, self._do("Mul", factor, times, f"{output}/product"), output)

    def _number(self, value: float, dtype: str) -> str:
        if (value, dtype) not in self._constants:
            name = f"dates/{dtype}/{len(self._constants)}"
            self._constants[value, dtype] = self._part.constant(name, value, np.dtype(dtype))
        return self._constants[value, dtype]
