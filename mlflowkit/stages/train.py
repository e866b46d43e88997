"""Fits preprocessing and model.

Published files:

spec.json          ``spec`` (the Spec without `HOW`) · ``features`` {numeric: [names], categorical: [names]} ·
                   ``classes`` (labels in the order of the outputs; [] for a regression) · ``width`` (columns after
                   preprocessing) · ``outputs`` (classes, or 1) · ``target_scale`` {mean, scale, double} or null
preprocess.json    fill, center and scale of the numeric columns, categories of the others; see
mlflowkit.features.preprocess
model.safetensors  torch: the state dict of the kept epoch, see mlflowkit.models.load_trained
model.onnx         onnx, bundle: a copy of the graph with its weights inside; no preprocess.json, and curves are empty
bundle.json        bundle: name, version and identity of the bundle, and the columns of its inputs
seen_rows.npy      bundle: the digests of the rows that it was trained on, where it has them
model.skops        sklearn: the estimator alone, fitted on the preprocessed matrix; a classifier's classes are the
                   indices 0 .. C-1 into ``classes``
curves.json        {"epoch": [1, ...], "train_loss": [...], "val_loss": [...], "val_<metric>": [...], "lr": [...]}

A torch regression learns ``(y - mean) / scale``: the prediction is ``output * scale + mean``. Its losses are in units
of the standardised target, its rmse in the target's own. A scikit-learn regression learns y itself (``target_scale`` is
null), or what is left above the offset of a target that float32 cannot hold. Losses of a classification are weighted by
train.class_weights.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from mlflowkit.bundle import TokenRule
from mlflowkit.data_access.registry_sections import is_remote_reference, require_one_version
from mlflowkit.features.dates.date_terms import DEFAULT_PARTS, AgeUnit, Cycle, DatePart, Zone
from mlflowkit.ports import StageContext
from mlflowkit.sections import Section
from mlflowkit.system.text import format_list
from mlflowkit.values import Event, StageResult

if TYPE_CHECKING:
    from mlflowkit.features.column_findings import Finding

PORTS = ("trainer",)
"""Ports that the result depends on."""

ADDED_SETTINGS = ("dates", "numeric", "categorical", "texts", "transforms")
"""Keys of preprocess that earlier versions did not have."""
MAX_FREQUENT = 200_000
"""The most values of a categorical column that have a frequency."""
Impute = Literal["median", "mean", "most_frequent"]
MAX_CATEGORIES = 10_000
"""The most columns that a categorical column may become."""
MAX_TEXT_FEATURES = 16_384
"""The most columns that a column of free text may become."""
MAX_TOKENS = 10_000
"""The most tokens of a text that are read: the graph holds all of them, of all rows that it is asked at once."""
REFERENCE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
SMALL_ENSEMBLE = 10
"""Members of an ensemble in the rehearsal."""
MODULES = ("mlflowkit.models", "sklearn")
"""Where a model may come from, besides the recipe's own folder."""
BOOSTING = ("xgboost", "lightgbm", "catboost")
UNSUPPORTED = (*BOOSTING, "tensorflow", "keras", "jax", "flax")
"""Libraries that people look for and that are not supported."""


def unsupported_hint(library: str, task: str) -> str:
    """What to write in place of an unsupported library's model.

    >>> unsupported_hint("xgboost", "regression").partition(",")[0]
    'write kind: sklearn and module: sklearn.ensemble:HistGradientBoostingRegressor'
    """
    graph = f"or export the {library} model to ONNX and write kind: onnx and path: model.onnx"
    if library not in BOOSTING:
        return f"write kind: torch and module: mlflowkit.models:TabularMLP, {graph}"
    role = "Regressor" if task == "regression" else "Classifier"
    return f"write kind: sklearn and module: sklearn.ensemble:HistGradientBoosting{role}, {graph}"


class TorchModel(Section):
    """A torch.nn.Module. Called with ``features`` (columns after preprocessing) and ``outputs`` (classes, or 1)
    besides ``args``; its forward takes float32 [rows, features] and returns [rows, outputs] (logits or values)."""

    kind: Literal["torch"]
    module: str = Field(default="mlflowkit.models:TabularMLP", pattern=REFERENCE)
    """``module:Class`` beside the recipe or in mlflowkit.models."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class SklearnModel(Section):
    """A scikit-learn estimator."""

    kind: Literal["sklearn"]
    module: str = Field(pattern=REFERENCE)
    """``module:Class`` in scikit-learn, such as sklearn.ensemble:HistGradientBoostingClassifier."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class OnnxOutputs(Section):
    """Names of the graph's outputs, where types and shapes are ambiguous."""

    probabilities: str | None = None
    """Of a classification: shares [rows, classes], or [rows] or [rows, 1] of the positive class."""
    logits: str | None = None
    """Instead of probabilities: scores that a softmax (one column: a sigmoid) turns into probabilities."""
    label: str | None = None
    """Of a classification: labels, or numbers of classes in the order of the scores. Without one, the likeliest."""
    prediction: str | None = None
    """Of a regression: values [rows] or [rows, 1], in the target's units."""


class OnnxModel(Section):
    """An external ONNX graph: nothing is trained or preprocessed, see `mlflowkit.graphs.imported_graph` for what fits.

    The number of rows must be open in its inputs. Its external data must lie in its folder.
    """

    kind: Literal["onnx"]
    path: str = Field(min_length=1)
    """The file, relative to the recipe."""
    inputs: dict[str, list[str]] | None = None
    """Columns of each input, in its order. Without it: one input a column by name, or one matrix for the numeric and
    one for the categorical columns, in the table's order."""
    outputs: OnnxOutputs | None = None
    """Names of the outputs, where types and shapes are ambiguous."""
    classes: list[str | int | bool] | None = None
    """The classes in the order of the graph's scores; without it sorted, as scikit-learn has them."""


class ImportedBundle(Section):
    """A blessed bundle: its graph, with its own preprocessing, is judged, optimised and served; nothing is trained."""

    kind: Literal["bundle"]
    reference: str = Field(min_length=1, max_length=1000)
    """One version of it: its folder, relative to the recipe, oci://HOST/NAME@sha256:DIGEST, hf://ORG/NAME@v-DIGITS, or
    models:/NAME/VERSION. It is fetched and verified when the run needs it."""

    @field_validator("reference")
    @classmethod
    def _names_one_version(cls, value: str) -> str:
        require_one_version(value)
        return value

    @property
    def path(self) -> str:
        """The folder, "" where it is in a registry."""
        return "" if is_remote_reference(self.reference) else self.reference


IMPORTED = (OnnxModel, ImportedBundle)
"""Models that are not trained here."""
Model = Annotated[TorchModel | SklearnModel | OnnxModel | ImportedBundle, Field(discriminator="kind")]


def model_label(model: TorchModel | SklearnModel | OnnxModel | ImportedBundle) -> str:
    """Display name of a model: its class, its file, or what names it."""
    if isinstance(model, ImportedBundle):
        return model.reference
    return model.path if isinstance(model, OnnxModel) else model.module


class DateAge(Section):
    """The time from another date to this one; negative where that one is later."""

    since: str = Field(min_length=1)
    """Another column of dates, or a date such as '2020-01-01'."""
    unit: AgeUnit = "days"
    """Of the number that a model sees; a year has 365.2425 days."""


class DateSettings(Section):
    """The numbers that a column of dates becomes; each is imputed and scaled like other numbers."""

    parts: list[DatePart] = Field(default_factory=lambda: list(DEFAULT_PARTS))
    """Parts of the civil date: year, month (1-12), day (1-31), weekday (Monday is 0), hour (0-23)."""
    cycles: list[Cycle] = Field(default_factory=list)
    """Parts that are also given as sine and cosine, so that December is next to January."""
    age: DateAge | None = None
    """The time since another date."""


class NumberSettings(Section):
    """How one column of numbers is imputed and scaled, where it differs from the others."""

    impute: Impute | None = None
    """What fills its missing numbers; as others without it."""
    scale: Literal["standard", "minmax", "robust", "log", "quantile", "none"] | None = None
    """robust: median and interquartile range; log: the logarithm of 1 + |x| with the sign of x, standardised; quantile:
    the share of training values below, between 0 and 1; as others without it."""
    knots: int = Field(default=101, ge=2, le=1001)
    """Of quantile: the most points between which the share is a straight line."""


class CategorySettings(Section):
    """How one categorical column is encoded, where it differs from the others."""

    encode: Literal["onehot", "frequency"] = "onehot"
    """onehot: a column for each category. frequency: one column, the category's share of the training rows (the target
    is not looked at); 0 for a value that they do not have."""
    max_categories: int | None = Field(default=None, ge=1, le=MAX_FREQUENT)
    """The most frequent values that are kept; preprocess.max_categories without it, of frequency all of them."""

    @property
    def limit(self) -> int | None:
        """The values that are kept; None for as many as of other columns."""
        return MAX_FREQUENT if self.max_categories is None and self.encode == "frequency" else self.max_categories


class TextSettings(Section):
    """The numbers that a column of free text becomes: its words, hashed as scikit-learn's HashingVectorizer does."""

    features: int = Field(default=256, ge=2, le=MAX_TEXT_FEATURES)
    """Buckets, each a number that the model sees. Different words may share one, which is told."""
    ngrams: list[Annotated[int, Field(ge=1, le=8)]] = Field(default_factory=lambda: [1, 1], min_length=2, max_length=2)
    """The fewest and the most tokens of a term: [1, 2] takes words and pairs of them, [3, 5] of analyzer: char runs of
    three to five characters."""
    analyzer: Literal["word", "char"] = "word"
    """word: runs of two and more letters, digits and underscores. char: every character."""
    lowercase: bool = True
    """Whether capital letters count as small ones."""
    norm: Literal["l2", "none"] = "l2"
    """l2: counts are divided by their length, so that long texts count as short ones do. none: counts."""
    max_tokens: int = Field(default=1000, ge=1, le=MAX_TOKENS)
    """Words (of analyzer: char, characters) of a text that are read; the share of longer texts is told."""

    @property
    def tokens(self) -> str:
        """What its tokens are, in words."""
        return "words" if self.analyzer == "word" else "characters"

    @property
    def rule(self) -> TokenRule:
        """How its texts are read, before the graph."""
        return TokenRule(analyzer=self.analyzer, lowercase=self.lowercase, max_tokens=self.max_tokens)

    @field_validator("ngrams")
    @classmethod
    def _ascends(cls, value: list[int]) -> list[int]:
        if value[0] > value[1]:
            raise ValueError(f"the fewest tokens, {value[0]}, are more than the most, {value[1]}")
        return value


class OwnTransformer(Section):
    """Numbers of your own: a class with ``fit(values) -> parameters`` and ``graph(parameters)``, whose ONNX graph
    computes them in training and in the service."""

    module: str = Field(pattern=REFERENCE)
    """``module:Class`` beside the recipe."""
    columns: list[str] = Field(min_length=1)
    """The columns of numbers that it takes, in this order; they stay features themselves."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""


class PreprocessSettings(Section):
    """Fitted on the training rows only and exported inside the graph."""

    impute: Impute = "median"
    """What fills missing numbers."""
    scale: Literal["standard", "minmax", "robust", "none"] = "standard"
    """How numbers are scaled; robust is by median and interquartile range."""
    max_categories: int = Field(default=50, ge=1, le=MAX_CATEGORIES)
    """The most frequent values of a categorical column that get a column of their own; others count as unknown, which
    is told with the share of rows."""
    numeric: dict[str, NumberSettings] = Field(default_factory=dict)
    """Columns of numbers that are imputed or scaled otherwise: ``income: {scale: log}``."""
    categorical: dict[str, CategorySettings] = Field(default_factory=dict)
    """Categorical columns that are encoded otherwise: ``merchant: {encode: frequency}``."""
    dates: dict[str, DateSettings] = Field(default_factory=dict)
    """What columns that ``data.columns`` declares date become; year, month, day and weekday where nothing is said."""
    texts: dict[str, TextSettings] = Field(default_factory=dict)
    """What columns that ``data.columns`` declares text become; 256 numbers by their words where nothing is said."""

    transforms: list[OwnTransformer] = Field(default_factory=list)
    """Further numbers, made of columns of numbers by classes of your own."""

    def text(self, name: str) -> TextSettings:
        """The settings of a column of free text."""
        return self.texts.get(name, TextSettings())

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that were added later are left out where they are empty, so that older fingerprints hold."""
        value: dict[str, Any] = handler(self)
        return {name: item for name, item in value.items() if item or name not in ADDED_SETTINGS}


class Optimizer(Section):
    """The optimiser of a torch model."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Its name."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled for adamw, L2 for the others."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd."""


class Schedule(Section):
    """How the learning rate moves."""

    name: Literal["none", "cosine", "step", "onecycle"] = "none"
    """Its name."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs of linear warm-up before it (cosine and step)."""
    step_epochs: int = Field(default=10, ge=1)
    """Of step: epochs between drops."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Of step: factor of each drop."""


class EarlyStopping(Section):
    """Stop when the validation loss no longer falls, and keep the best epoch."""

    patience: int = Field(default=5, ge=1)
    """Epochs without improvement before training stops."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest fall of the loss that counts."""


class TrainSection(Section):
    """How the model is fitted. For scikit-learn only class_weights matters; the rest is in model.args."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the training rows (torch)."""
    batch_size: int = Field(default=256, ge=1)
    """Rows a step, over all workers (torch)."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    """The optimiser (torch)."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning-rate schedule (torch)."""
    early_stopping: EarlyStopping | None = None
    """When to stop early (torch)."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient (torch)."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weight of each class in the loss; balanced weighs by inverse frequency. Classification only."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32. fp16 needs a GPU."""
    shards: int | None = Field(default=None, ge=1)
    """Parts of each batch whose gradients are added in a fixed order, so that any number of workers up to it gives the
    same model, bit for bit on CPUs; null: one a worker (torch). More than one costs time where a step is short."""
    workers: int = Field(default=0, ge=0)
    """0 fits in this process; N fits with N workers on Ray. The model does not depend on it, only on shards."""
    max_failures: int = Field(default=2, ge=0)
    """How often a lost worker is replaced before the run fails (workers > 0)."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints; a killed run resumes at the last."""

    @property
    def shard_count(self) -> int:
        """The shards of each batch."""
        return self.shards or max(self.workers, 1)

    def with_shards(self) -> Self:
        """These settings with the number of shards written out: it is part of what is computed."""
        return self.model_copy(update={"shards": self.shard_count})

    @model_validator(mode="before")
    @classmethod
    def _drop_tune(cls, value: Any) -> Any:
        """Recipes of earlier versions may set ``tune: null``, which was its only value."""
        if isinstance(value, dict) and "tune" in value and value["tune"] is None:
            return {key: item for key, item in value.items() if key != "tune"}
        return value


HOW = ("workers", "max_failures", "checkpoint_every")
"""Keys of train that say how it is computed, not what: its result does not depend on them."""


class Spec(Section):
    """Inputs of the train stage's result, besides its input folder, the model's code and the seed, and `HOW`."""

    task: Literal["classification", "regression"]
    model: Model
    preprocess: PreprocessSettings
    train: TrainSection


class TargetScaling(Section):
    """Standardisation of a torch regression's target: ``(y - mean) / scale``."""

    mean: float
    scale: float
    double: bool = False
    """Whether it is undone in double precision, because float32 would merge values of the target."""


class FeatureNames(Section):
    """Feature columns by kind, in the order of the preprocessor's input."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    offsets: tuple[float, ...] = ()
    """Of the numeric columns; see mlflowkit.features.precision."""
    orders: tuple[tuple[str, ...], ...] = ()
    """Of the categorical columns, from the least value to the greatest; () for a column without an order."""
    dates: tuple[str, ...] = ()
    zones: tuple[Zone, ...] = ()
    """Of the dates: whether their texts have an offset from UTC."""
    texts: tuple[str, ...] = ()
    """Those of the categorical columns that are free text."""


class FitResult(Section):
    """Result of a Trainer. Curves go to curves.json, the fields from ``features`` on to spec.json."""

    epochs: int
    best_epoch: int
    metrics: dict[str, float]
    """Of the kept epoch: train_loss, val_loss and so on."""
    curves: dict[str, list[float]]
    device: str = "cpu"
    precision: str = "fp32"
    parameters: int = 0
    resumed_from: int | None = None
    """Epoch that training was resumed at, or None."""
    features: FeatureNames
    classes: tuple[str | int, ...]
    width: int
    """Columns after preprocessing."""
    outputs: int
    target_scale: TargetScaling | None = None


def run(spec: Spec, context: StageContext) -> StageResult:
    """Fit with the Trainer of ``spec.model.kind`` and publish the files listed in the module's docstring.

    Before that a few rows are fitted, exported and compared, so that a model without a faithful graph is refused before
    it costs anything. Raises what the Trainer and the Exporter raise: DataError, UsageError, UserCodeError,
    EngineError, StoreError.
    """
    advice = None if isinstance(spec.model, IMPORTED) else _rehearse(spec, context)
    if advice is not None:
        context.progress(Event("train", "warning", ": ".join(advice)))
    result = _fit(spec, context)
    (context.out / "curves.json").write_text(json.dumps(result.curves))
    summary = result.model_dump(
        mode="json",
        include={"epochs", "best_epoch", "parameters", "device", "precision", "resumed_from", "width", "outputs"},
    )
    findings = []
    if not isinstance(spec.model, IMPORTED):
        findings = [
            *unknown_categories(spec, context), *hashed_texts(spec, context), *undefined_numbers(spec, context)
        ]  # fmt: skip
    for finding in findings:
        context.progress(Event("train", "warning", str(finding)))
    listed = [finding.to_json() for finding in findings]
    if advice is not None:
        listed.insert(0, {"column": "", **dict(zip(("message", "hint"), advice, strict=True))})
    summary |= {"findings": listed}
    return StageResult(metrics=result.metrics, summary={"model": model_label(spec.model), **summary})


def unknown_categories(spec: Spec, context: StageContext) -> list[Finding]:
    """The columns with more values than ``preprocess.max_categories``, and the share of rows that this costs."""
    from mlflowkit.features import preprocess
    from mlflowkit.features.column_findings import Finding

    table = preprocess.open_table(context.inputs["data"])
    if not table.features.categorical:
        return []
    fitted = preprocess.load_preprocess(context.out)
    uncovered = preprocess.uncovered_categories(fitted, table.read("train").inputs)
    findings = []
    for name, (distinct, share) in zip(table.features.categorical, uncovered, strict=True):
        if share:
            own = spec.preprocess.categorical.get(name)
            key, limit = "preprocess.max_categories", spec.preprocess.max_categories
            if own is not None and own.limit is not None:
                key, limit = f"preprocess.categorical.{name}.max_categories", own.limit
            message = f"has {distinct:,} different values and {key} is {limit:,}: {share:.1%} of the "
            message += "training rows count as unknown"
            hint = f"mlkit run RECIPE {key}={min(distinct, MAX_CATEGORIES)}"
            if own is None:
                hint += f"; or write preprocess.categorical: {{{name}: {{encode: frequency}}}}"
            findings.append(Finding(name, message, hint))
    return findings


def hashed_texts(spec: Spec, context: StageContext) -> list[Finding]:
    """How many terms of the training rows share a bucket, and how many texts are longer than what is read."""
    from mlflowkit.features import preprocess
    from mlflowkit.features.column_findings import Finding
    from mlflowkit.features.texts import text_hashing

    table = preprocess.open_table(context.inputs["data"])
    findings = []
    for name in table.features.texts:
        setting, key = spec.preprocess.text(name), f"preprocess.texts.{name}"
        fitted = text_hashing.text_hash(setting)
        texts, shortened = text_hashing.canonical_column(table.texts("train", name), setting.rule)
        counted = text_hashing.collisions(texts, fitted)
        if not counted.terms:
            message = f"holds no {setting.tokens} in the training rows: a model learns nothing from it"
            hint = f"mlkit run RECIPE {key}.analyzer=char; or write data.columns: {{{name}: ignore}}"
            hint += f" and remove {key}" if name in spec.preprocess.texts else ""
            findings.append(Finding(name, message, hint))
        if counted.sharing:
            message = (
                f"has {counted.terms:,} different terms in {setting.features:,} buckets: {counted.share:.1%} share"
            )
            more = min(MAX_TEXT_FEATURES, max(1 << (4 * counted.terms - 1).bit_length(), 2 * setting.features))
            hint = f"mlkit run RECIPE {key}.features={more}" if more > setting.features else "use a graph of your own"
            findings.append(Finding(name, f"{message} theirs with another", hint))
        if shortened:
            message = f"{shortened:,} of {len(texts):,} texts ({shortened / len(texts):.1%}) have more than"
            longer = min(MAX_TOKENS, 4 * setting.max_tokens)
            hint = f"mlkit run RECIPE {key}.max_tokens={longer}" if longer > setting.max_tokens else ""
            findings.append(Finding(name, f"{message} {setting.max_tokens:,} {setting.tokens}, which are read", hint))
    return findings


def undefined_numbers(spec: Spec, context: StageContext) -> list[Finding]:
    """The share of training rows of which a transformer makes no number, though none of its columns is missing."""
    from mlflowkit.features import preprocess
    from mlflowkit.features.column_findings import Finding
    from mlflowkit.features.numbers.own_transforms import undefined_share

    if not spec.preprocess.transforms:
        return []
    table, findings = preprocess.open_table(context.inputs["data"]), []
    numeric = table.read("train").inputs["numeric"]
    for transform in preprocess.load_preprocess(context.out).transforms:
        if share := undefined_share(numeric, transform):
            names = [table.features.numeric[index] for index in transform.columns]
            message = f"is complete with {format_list(names[1:])}" if names[1:] else "is not missing"
            message += f" in {share:.1%} of the training rows of which {transform.module} makes no number"
            hint = "they are imputed; keep negative numbers from Log, Sqrt and Pow: Abs, Max or Clip before them"
            findings.append(Finding(names[0], message, hint))
    return findings


def _fit(spec: Spec, context: StageContext) -> FitResult:
    """Fit, and write ``spec.json`` beside what the Trainer wrote."""
    result = FitResult.model_validate(context.ports.trainer(spec.model.kind).fit(spec, context))
    description = {
        "spec": spec.model_dump(mode="json", exclude={"train": set(HOW)}),
        **result.model_dump(mode="json", include={"features", "classes", "width", "outputs", "target_scale"}),
    }
    for name in ("offsets", "orders", "dates", "zones", "texts"):
        if not any(getattr(result.features, name)):
            del description["features"][name]
    (context.out / "spec.json").write_text(json.dumps(description, ensure_ascii=False, indent=1))
    return result


def _rehearse(spec: Spec, context: StageContext) -> tuple[str, str] | None:
    """Fit a smaller model to a few rows and export it, once a fingerprint."""
    from mlflowkit.graphs.rehearsal import rehearse

    model, settings = spec.model, spec.train.model_copy(update={"epochs": 1, "workers": 0, "early_stopping": None})
    assert not isinstance(model, IMPORTED)
    small = {name: min(value, SMALL_ENSEMBLE) for name, value in model.args.items() if _counts_members(name, value)}
    update = {"model": model.model_copy(update={"args": {**model.args, **small}}), "train": settings}
    smaller = spec.model_copy(update=update if isinstance(model, SklearnModel) else {"train": settings})
    return rehearse(context, lambda rehearsal: _fit(smaller, rehearsal))


def _counts_members(name: str, value: object) -> bool:
    """Whether an argument is the number of an ensemble's members, which do not change how it is converted."""
    return name == "n_estimators" and isinstance(value, int) and value > 0
