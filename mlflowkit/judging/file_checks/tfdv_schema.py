"""``schema.pbtxt`` of TensorFlow Data Validation: parsed by its protos, refused where it states what is not judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

from mlflowkit.errors import closest_match
from mlflowkit.judging.file_checks.file_problem import FileProblem, RulesFile

COMPARATOR = ("infinity_norm.threshold", "jensen_shannon_divergence.threshold")
FEATURE = (
    "name", "type", "deprecated", "lifecycle_stage", "presence.min_fraction", "presence.min_count", "shape.dim.size",
    "shape.dim.name", "value_count.min", "value_count.max", "domain", "int_domain.name", "int_domain.min",
    "int_domain.max", "int_domain.is_categorical", "float_domain.name", "float_domain.min", "float_domain.max",
    "float_domain.disallow_nan", "float_domain.disallow_inf", "string_domain.name", "string_domain.value",
    "string_domain.is_categorical", "bool_domain.name", "bool_domain.true_value", "bool_domain.false_value",
    "distribution_constraints.min_domain_mass", "unique_constraints.min", "unique_constraints.max", "in_environment",
    "not_in_environment", *(f"{kind}_comparator.{name}" for kind in ("drift", "skew") for name in COMPARATOR),
)  # fmt: skip
JUDGED = frozenset({
    *(f"feature.{name}" for name in FEATURE), "string_domain.name", "string_domain.value",
    "string_domain.is_categorical", "default_environment", "dataset_constraints.min_examples_count",
    "dataset_constraints.max_examples_count",
    "dataset_constraints.num_examples_drift_comparator.min_fraction_threshold",
    "dataset_constraints.num_examples_drift_comparator.max_fraction_threshold",
})  # fmt: skip
"""Fields that are judged, as paths of field names."""
SILENT = ("annotation", "feature.annotation", "tensor_representation_group", "represent_variable_length_as_ragged")
"""Fields that state nothing of the rows."""
IGNORED_STAGES = ("PLANNED", "ALPHA", "DEPRECATED", "DEBUG_ONLY", "DISABLED")
"""Life-cycle stages whose features are not judged, as in TFDV."""
DOMAINS: Mapping[str, tuple[str, ...]] = {
    "domain": ("BYTES",), "string_domain": ("BYTES",), "int_domain": ("INT", "BYTES"),
    "float_domain": ("FLOAT", "BYTES"), "bool_domain": ("INT", "FLOAT", "BYTES"),
}  # fmt: skip
"""Types of feature that each domain is for."""
INSTALL = "pip install 'mlflowkit[tfdv]'"

_TOKEN = re.compile(
    r"""(?P<skip>[\s;,]+|\#[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<open>[{<])|(?P<close>[}>])
    |(?P<word>[A-Za-z_][\w.]*)|(?P<other>.)""",
    re.X | re.S,
)


@dataclass(frozen=True, slots=True)
class FieldPlace:
    """A field that a file sets: the names on its way, its place, and how many features began before it."""

    path: str
    line: int
    column: int
    feature: int


def is_installed() -> bool:
    """Whether the protos of TFDV's schema are installed; they are not imported."""
    return PathFinder.find_spec("tensorflow_metadata") is not None


def parse_schema(text: str) -> Any:
    """The Schema message of a file, or a FileProblem. An unknown field is an error with its place."""
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    try:
        return text_format.Parse(text, schema_pb2.Schema())
    except text_format.ParseError as error:
        message = re.sub(r"^\d+:\d+ : ('.*': )?", "", str(error).partition("\n")[0])
        close = _closest_field(message)
        return FileProblem(message, f"did you mean {close}?" if close else "", error.GetLine(), error.GetColumn())


def read_schema(text: str, *, environment: str = "", serving: str = "") -> RulesFile:
    """The problems of a file, and the columns that it requires. Empty where the protos are not installed."""
    if not is_installed():
        return RulesFile()
    schema = parse_schema(text)
    if isinstance(schema, FileProblem):
        return RulesFile((schema,))
    places = list(field_places(text))
    problems = [*_not_judged(places, serving), *_environment(schema, environment)]
    if not schema.feature and not schema.HasField("dataset_constraints"):
        problems.append(FileProblem("the schema has no features: it would always pass", "infer it with TFDV", 1, 1))
    starts = [place for place in places if place.path == "feature"]
    columns: dict[str, tuple[int, int]] = {}
    for feature, start in zip(schema.feature, starts, strict=False):
        problems += [FileProblem(message, hint, start.line, start.column) for message, hint in _unfit(feature, schema)]
        if is_required(schema, feature, environment):
            columns[feature.name] = (start.line, start.column)
    return RulesFile(tuple(sorted(problems, key=lambda item: (item.line, item.column))), columns)


def is_ignored(feature: Any) -> bool:
    """Whether a feature's life-cycle stage takes it out of validation."""
    from tensorflow_metadata.proto.v0 import schema_pb2

    stage = schema_pb2.LifecycleStage.Name(feature.lifecycle_stage)
    return bool(feature.deprecated) or stage in IGNORED_STAGES


def in_environment(schema: Any, feature: Any, environment: str) -> bool:
    """Whether a feature belongs to an environment; to every one without a name."""
    if not environment or environment in feature.in_environment:
        return True
    return environment not in feature.not_in_environment and environment in schema.default_environment


def is_required(schema: Any, feature: Any, environment: str) -> bool:
    """Whether a column must be in the table."""
    demanded = feature.presence.min_count > 0 or feature.presence.min_fraction > 0
    return demanded and not is_ignored(feature) and in_environment(schema, feature, environment)


def is_categorical(feature: Any) -> bool:
    """Whether values are counted one by one: texts, and integers that are declared categories."""
    return type_name(feature) == "BYTES" or bool(feature.int_domain.is_categorical)


def type_name(feature: Any) -> str:
    from tensorflow_metadata.proto.v0 import schema_pb2

    name: str = schema_pb2.FeatureType.Name(feature.type)
    domain = feature.WhichOneof("domain_info")
    return "BYTES" if name == "TYPE_UNKNOWN" and domain in ("domain", "string_domain") else name


def field_places(text: str) -> Iterator[FieldPlace]:
    """Every field that a text-format file sets, in order."""
    stack: list[str] = []
    name, line, start, features = "", 1, 0, 0
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "word":
            rest = text[match.end() :].lstrip()[:1]
            if rest in (":", "{", "<") and rest:
                name = token
                path = ".".join([*stack, name])
                features += path == "feature"
                yield FieldPlace(path, line, match.start() - start + 1, features - 1)
        elif kind == "open":
            stack.append(name)
        elif kind == "close" and stack:
            stack.pop()
        if "\n" in token:
            line += token.count("\n")
            start = match.start() + token.rindex("\n") + 1


def _not_judged(places: Sequence[FieldPlace], serving: str) -> Iterator[FileProblem]:
    """Fields that the file sets and that are not judged, each once per message."""
    known = {".".join(path.split(".")[:depth]) for path in JUDGED for depth in range(1, path.count(".") + 2)}
    refused = (-1, "")
    for place in places:
        inside = place.feature == refused[0] and place.path.startswith(f"{refused[1]}.")
        if inside or any(place.path == name or place.path.startswith(f"{name}.") for name in SILENT):
            continue
        name = place.path.rpartition(".")[2]
        if place.path not in known:
            refused = (place.feature, place.path)
            message = f"{name} is not judged here, and a rule that nobody checks would look as if it held"
            yield FileProblem(message, f"remove {name}, or state it as a check of its own", place.line, place.column)
        elif place.path == "feature.skew_comparator" and not serving:
            message = "skew_comparator compares with rows that were served, and the check names none"
            yield FileProblem(message, "add serving: FILE.parquet to the check", place.line, place.column)


def _environment(schema: Any, environment: str) -> Iterator[FileProblem]:
    listed = {*schema.default_environment, *(name for item in schema.feature for name in item.in_environment)}
    if environment and environment not in listed:
        close = closest_match(environment, sorted(listed))
        hint = f"did you mean {close}?" if close else "default_environment lists those of a schema"
        yield FileProblem(f"the schema knows no environment {environment!r}", hint, 1, 1)


def _unfit(feature: Any, schema: Any) -> Iterator[tuple[str, str]]:
    """Statements of a feature that contradict one another, or that could never fail."""
    name, kind, domain = feature.name, type_name(feature), feature.WhichOneof("domain_info")
    if is_ignored(feature):
        return
    if not name:
        yield "a feature has no name", "add name:"
    if kind not in ("BYTES", "INT", "FLOAT"):
        yield f"feature {name!r} has type {kind}", "a column of a table is BYTES, INT or FLOAT"
        return
    if domain in DOMAINS and kind not in DOMAINS[domain]:
        yield f"feature {name!r} is {kind} and has a {domain}", f"a {domain} is for {' or '.join(DOMAINS[domain])}"
    if domain == "domain" and feature.domain not in {item.name for item in schema.string_domain}:
        yield f"feature {name!r} names a domain {feature.domain!r} that is not there", "add string_domain { name: }"
    if feature.HasField("distribution_constraints") and domain not in ("domain", "string_domain"):
        yield f"min_domain_mass of {name!r} needs a string domain", "add string_domain, or remove it"
    if not 0 <= feature.presence.min_fraction <= 1:
        yield f"min_fraction of {name!r} is {feature.presence.min_fraction:g}", "it is from 0 to 1"
    if feature.value_count.HasField("max") and feature.value_count.max < feature.value_count.min:
        yield f"value_count of {name!r} has max below min", "swap them"
    if not is_categorical(feature):
        for comparator in ("drift_comparator", "skew_comparator"):
            if getattr(feature, comparator).HasField("infinity_norm"):
                message = f"infinity_norm of {name!r}, a number, is 0 whatever the values are"
                yield message, "write jensen_shannon_divergence"
        if feature.HasField("unique_constraints"):
            yield f"unique_constraints of {name!r}, a number, count nothing", "set is_categorical in its int_domain"


def _closest_field(message: str) -> str:
    """The field that a parse error's unknown name is meant to be."""
    match = re.search(r'Message type "tensorflow\.metadata\.v0\.(\w+)" has no field named "(\w+)"', message)
    if match is None:
        return ""
    from tensorflow_metadata.proto.v0 import schema_pb2

    described = getattr(schema_pb2, match[1], None)
    return closest_match(match[2], [field.name for field in described.DESCRIPTOR.fields]) or "" if described else ""
