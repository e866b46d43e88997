"""Synthetic card transactions with a known truth, for fraud.yaml: seeded, without a file, and with scenarios of change.

Each row is a transaction with its features x. Its outcome is drawn with the probability P(fraud | x) that `probability`
states as a formula: no model can do better than to rank by that formula, and `BAYES` says what this reaches. Everything
is a pure function of (seed, day, scenario): day 40 is the same whether or not day 39 was drawn, today and tomorrow.

Day 0 is a Monday; days before it are negative. Outcomes are known after a delay (median 14 days, 95 % within 45), and
15 % never: `transactions` returns what is known on a day, and a training that runs later sees more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mlflowkit.errors import UsageError

ROWS = 20_000
"""Transactions a day."""
CARDS = 20_000
"""Cards; the tenth of them that is used most makes three fifths of the transactions."""
RATE = 0.005
"""Share of fraud over whole weeks."""
EPOCH = 1_735_516_800
"""Day 0 in seconds since the epoch: Monday, 30 December 2024."""
DAY_SECONDS = 86_400
NEVER = 0.15
"""Share of transactions whose outcome is never known."""
MEDIAN_DELAY, DELAY_SIGMA = 14.0, 0.71
"""Days until an outcome is known, lognormal: median, and standard deviation of the logarithm (95 % within 45 days)."""
CARD_LIFE = 1095
"""Days until a card is replaced."""


class BayesTruth(NamedTuple):
    """What the best possible model reaches over whole weeks without a scenario, by Monte Carlo over 14 million rows."""

    roc_auc: float
    average_precision: float
    recall_at_1_percent: float
    """Share of the fraud in the 1 % of rows with the highest probability."""


BAYES = BayesTruth(roc_auc=0.9814, average_precision=0.479, recall_at_1_percent=0.636)

OUTCOMES = ("genuine", "fraud")
CHANNELS = ("chip", "contactless", "online")


class MerchantClass(NamedTuple):
    """One kind of merchant: its weight among all, the median amount in euro, and its part of the log-odds of fraud."""

    weight: float
    median: float
    risk: float


MERCHANTS: Mapping[str, MerchantClass] = {
    "groceries": MerchantClass(20, 28, -1.0),
    "restaurants": MerchantClass(12, 24, -0.8),
    "fuel": MerchantClass(9, 52, -0.4),
    "fashion": MerchantClass(7, 60, 0.1),
    "transport": MerchantClass(7, 12, -0.7),
    "pharmacy": MerchantClass(6, 18, -0.9),
    "household": MerchantClass(5, 45, -0.3),
    "electronics": MerchantClass(4.5, 160, 1.5),
    "digital_goods": MerchantClass(4, 15, 1.2),
    "streaming": MerchantClass(3.5, 11, -0.5),
    "books": MerchantClass(3, 22, -0.6),
    "sports": MerchantClass(2.5, 55, 0.0),
    "cosmetics": MerchantClass(2.5, 35, 0.2),
    "hotels": MerchantClass(2, 180, 0.4),
    "airlines": MerchantClass(1.5, 260, 0.9),
    "gift_cards": MerchantClass(1.5, 50, 2.0),
    "jewellery": MerchantClass(1, 190, 1.8),
    "toys": MerchantClass(1.5, 32, -0.2),
    "furniture": MerchantClass(1, 240, 0.3),
    "pets": MerchantClass(1.5, 30, -0.7),
    "tickets": MerchantClass(1.2, 70, 0.7),
    "health": MerchantClass(1.3, 65, -0.8),
    "insurance": MerchantClass(0.8, 95, -1.2),
    "money_transfer": MerchantClass(0.7, 150, 2.3),
}
NEW_MERCHANT = "crypto"
NEW_MERCHANT_CLASS = MerchantClass(0, 120, 1.6)
"""The merchant class of the scenario ``new_merchant``."""
COUNTRIES = (
    *("DE", "FR", "IT", "ES", "NL", "PL", "BE", "AT", "SE", "PT", "CZ", "DK", "FI", "IE", "GR"),
    *("HU", "RO", "SK", "BG", "HR", "SI", "LT", "LV", "EE", "LU", "GB", "CH", "NO", "US", "TR"),
)
COUNTRY_RISK = {"US": 0.8, "TR": 0.9, "GB": 0.4, "RO": 0.5, "BG": 0.4, "LV": 0.3}
RING_MERCHANTS = ("digital_goods", "streaming", "gift_cards")

INTERCEPT = -8.595
"""Of the log-odds of fraud, such that RATE holds."""
RING_SHARE = 0.0124
"""Share of all transactions that look like those of the ring."""
RING_GROWTH = 2.0
"""How much fraud the ring commits for each that it displaces."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What changes from the onset on; ``size`` says by how much."""

    size: float
    text: str
    days: int | None = None
    """For how many days; None for ever."""


SCENARIOS: Mapping[str, Scenario] = {
    "none": Scenario(0.0, "nothing changes"),
    "inflation": Scenario(1.3, "prices are multiplied by the size; fraud is no other: harmless"),
    "new_merchant": Scenario(0.05, "a merchant class that was never seen makes this share of the transactions"),
    "ring": Scenario(0.7, "this share of the fraud ends, and a ring commits twice as much: small online purchases on "
                          "known devices. P(fraud | x) changes, the transactions do not"),
    "cents": Scenario(100.0, "an upstream system sends cents instead of euro: amounts are multiplied by the size"),
    "nulls": Scenario(0.4, "this share of device_age_days is missing"),
    "black_friday": Scenario(1.5, "four days of larger amounts (times the size) and more online purchases", days=4),
}  # fmt: skip
FEATURES = (
    *("amount", "merchant_class", "country", "channel", "hour", "card_age_days", "device_age_days"),
    *("distance_km", "velocity_1h", "is_new_device", "same_country"),
)


@dataclass(frozen=True, slots=True)
class World:
    """Where transactions come from. ``onset`` is the first day of the scenario; ``size`` None is the scenario's own."""

    seed: int = 7
    scenario: str = "none"
    onset: int = 0
    size: float | None = None
    rows: int = ROWS
    median_delay: float = MEDIAN_DELAY

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise UsageError(
                f"there is no scenario {self.scenario!r}; there is {', '.join(SCENARIOS)}",
                hint="set data.source.args.scenario",
            )

    def active(self, day: int) -> str:
        """The scenario of a day: "none" outside of it."""
        days = SCENARIOS[self.scenario].days
        inside = day >= self.onset and (days is None or day < self.onset + days)
        return self.scenario if inside else "none"

    @property
    def strength(self) -> float:
        return SCENARIOS[self.scenario].size if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class Day:
    """The transactions of one day, by time.

    table        the features, ``time`` (seconds since the epoch) and ``card``
    probability  P(fraud | x) of each row, which no model is shown
    fraud        the outcome, bool
    delay        days until the outcome is known, inf for never
    """

    table: pd.DataFrame
    probability: np.ndarray
    fraud: np.ndarray
    delay: np.ndarray


def draw(day: int, world: World | None = None) -> Day:
    """The transactions of a day.

    >>> first, again = draw(3, World(rows=50)), draw(3, World(rows=50))
    >>> bool(first.table.equals(again.table)), first.table.shape
    (True, (50, 13))
    """
    world = world or World()
    generator = np.random.default_rng([world.seed, day + 1_000_000])
    scenario, size = world.active(day), world.strength
    table = _features(day, world, generator, scenario, size)
    chance = probability(table)
    if scenario == "ring":
        chance = (1 - size) * chance + RING_GROWTH * size * ring_probability(table)
    fraud = generator.random(world.rows) < chance
    delay = world.median_delay * np.exp(DELAY_SIGMA * generator.standard_normal(world.rows))
    delay[generator.random(world.rows) < NEVER] = np.inf
    blanks = generator.random(world.rows) < size
    if scenario in ("inflation", "cents"):  # the truth depends on what was paid, not on how it is written down
        table["amount"] = np.round(table["amount"] * size, 2)
    elif scenario == "nulls":
        table.loc[blanks, "device_age_days"] = np.nan
    order = np.argsort(table["time"].to_numpy(), kind="stable")
    return Day(table.iloc[order].reset_index(drop=True), chance[order], fraud[order], delay[order])


def transactions(
    until: int = 0,
    days: int = 28,
    seed: int = 7,
    scenario: str = "none",
    onset: int = 0,
    size: float | None = None,
    rows: int = ROWS,
    median_delay: float = MEDIAN_DELAY,
    calendar: str | None = None,
) -> pd.DataFrame:
    """The last transactions before day ``until`` whose outcome is known by then: the table of fraud.yaml.

    ``calendar`` names a JSON file {"until": ..., "scenario": ..., "onset": ..., "size": ...} that takes the place of
    those arguments: who keeps it up to date lets new data arrive. Raises UsageError for one that cannot be read.
    """
    if calendar is not None:
        now = _calendar(Path(calendar))
        until, scenario, onset, size = now["until"], now["scenario"], now["onset"], now.get("size", size)
    world = World(seed, scenario, onset, size, rows, median_delay)
    parts = []
    for day in range(until - days, until):
        drawn = draw(day, world)
        known = day + drawn.table["time"].to_numpy() % DAY_SECONDS / DAY_SECONDS + drawn.delay <= until
        outcome = np.where(drawn.fraud, OUTCOMES[1], OUTCOMES[0])
        parts.append(drawn.table.assign(outcome=outcome)[known])
    return pd.concat(parts, ignore_index=True)


def _calendar(path: Path) -> dict[str, int | float | str | None]:
    try:
        value = json.loads(path.read_text())
        return {"scenario": "none", "onset": 0, **value, "until": int(value["until"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f'{path} is no calendar: {{"until": 30, "scenario": "ring", "onset": 12}} is expected; {error!r}'
        raise UsageError(message, hint="python recipes/drive_fraud.py writes one") from error


class Cards(NamedTuple):
    """What stays the same of each card: how often it is used (shares), its country, its age on day 0, and how fast it
    is used again (purchases an hour while it is in use)."""

    use: np.ndarray
    country: np.ndarray
    age: np.ndarray
    pace: np.ndarray


@lru_cache(maxsize=8)
def cards(seed: int) -> Cards:
    """The cards of a seed."""
    generator = np.random.default_rng([seed, 0])
    use = generator.pareto(1.5, CARDS) + 0.05
    weights = 1 / np.arange(1, len(COUNTRIES) + 1)
    return Cards(
        use / use.sum(),
        generator.choice(len(COUNTRIES), CARDS, p=weights / weights.sum()),
        generator.integers(0, CARD_LIFE, CARDS),
        generator.gamma(1.2, 0.25, CARDS),
    )


def _features(day: int, world: World, generator: np.random.Generator, scenario: str, size: float) -> pd.DataFrame:
    """Transactions of a day in any order, before what a scenario does to how they are written down."""
    rows, owners, weekend, sale = world.rows, cards(world.seed), day % 7 >= 5, scenario == "black_friday"
    card = generator.choice(CARDS, rows, p=owners.use)
    names = [*MERCHANTS, NEW_MERCHANT]
    weights = np.array([MERCHANTS[name].weight for name in MERCHANTS])
    merchant = generator.choice(len(MERCHANTS), rows, p=weights / weights.sum())
    renamed = generator.random(rows) < size
    if scenario == "new_merchant":
        merchant[renamed] = len(MERCHANTS)
    medians = np.array([_merchant(name).median for name in names])
    amount = medians[merchant] * np.exp(0.8 * generator.standard_normal(rows) + 0.12 * weekend)
    shares = [0.27, 0.28, 0.45] if sale else [0.33, 0.30, 0.37] if weekend else [0.36, 0.32, 0.32]
    channel = generator.choice(len(CHANNELS), rows, p=shares)
    evening = generator.random(rows) < (0.6 if weekend else 0.5)
    hour = np.clip(np.where(evening, 18.5, 11.0) + 2.6 * generator.standard_normal(rows), -5, 28) % 24
    abroad = generator.random(rows) < 0.05
    other = generator.integers(0, len(COUNTRIES), rows)
    country = np.where(abroad, other, owners.country[card])
    same = country == owners.country[card]
    is_new = generator.random(rows) < 0.03
    device_age = np.where(is_new, 0.0, np.round(400 * generator.gamma(1.1, 1.0, rows)))
    device_age[generator.random(rows) < 0.08] = np.nan
    distance = np.where(same, 6.0, 900.0) * np.exp(1.1 * generator.standard_normal(rows))
    second = np.minimum((hour * 3600).astype(np.int64), DAY_SECONDS - 1)
    return pd.DataFrame(
        {
            "time": EPOCH + day * DAY_SECONDS + second,
            "card": card,
            "amount": np.round(np.maximum(amount * (size if sale else 1.0), 0.5), 2),
            "merchant_class": np.array(names, dtype=object)[merchant],
            "country": np.array(COUNTRIES, dtype=object)[country],
            "channel": np.array(CHANNELS, dtype=object)[channel],
            "hour": np.floor(hour).astype(np.int64),
            "card_age_days": (owners.age[card] + day) % CARD_LIFE,
            "device_age_days": device_age,
            "distance_km": np.round(distance, 1),
            "velocity_1h": 1 + generator.poisson(owners.pace[card]),
            "is_new_device": is_new.astype(np.int64),
            "same_country": same.astype(np.int64),
        }
    )


def probability(table: pd.DataFrame) -> np.ndarray:
    """P(fraud | x) of rows with FEATURES, float64 [rows], without the scenario ``ring``. Amounts are in euro of day 0.

    >>> row = {"amount": 20.0, "merchant_class": "groceries", "country": "DE", "channel": "chip", "hour": 12,
    ...        "card_age_days": 400, "device_age_days": 300.0, "distance_km": 3.0, "velocity_1h": 1,
    ...        "is_new_device": 0, "same_country": 1}
    >>> thief = row | {"amount": 900.0, "channel": "online", "hour": 3, "is_new_device": 1, "same_country": 0}
    >>> [round(float(p), 4) for p in probability(pd.DataFrame([row, thief]))]
    [0.0, 0.9539]
    """
    classes = {name: _merchant(name) for name in [*MERCHANTS, NEW_MERCHANT]}
    median = table["merchant_class"].map({name: item.median for name, item in classes.items()}).to_numpy()
    risk = table["merchant_class"].map({name: item.risk for name, item in classes.items()}).to_numpy()
    device_age = table["device_age_days"].to_numpy(dtype=np.float64)
    known = ~np.isnan(device_age)
    hour = table["hour"].to_numpy()
    log_odds = (
        INTERCEPT
        + 1.8 * np.log(table["amount"].to_numpy() / median)
        + 1.6 * risk
        + 1.6 * table["country"].map(COUNTRY_RISK).fillna(0.0).to_numpy()
        + 2.4 * (table["channel"] == "online").to_numpy()
        - 1.6 * (table["channel"] == "chip").to_numpy()
        + 2.0 * (hour < 6)
        - 0.7 * np.log1p(table["card_age_days"].to_numpy() / 90)
        - 0.4 * np.log1p(np.where(known, device_age, 0.0) / 30)
        + np.where(known, 0.0, 0.3)
        + 0.55 * np.log(table["distance_km"].to_numpy() / 6 + 1)
        + 1.8 * np.log(table["velocity_1h"].to_numpy())
        + 3.5 * table["is_new_device"].to_numpy()
        + 1.0 * (table["same_country"] == 0).to_numpy()
    )
    result: np.ndarray = 1 / (1 + np.exp(-log_odds))
    return result


def ring_probability(table: pd.DataFrame) -> np.ndarray:
    """P(fraud | x) if all fraud were the ring's: evenly among purchases that look like theirs, at the rate RATE."""
    looks = (
        table["merchant_class"].isin(RING_MERCHANTS)
        & (table["channel"] == "online")
        & (table["is_new_device"] == 0)
        & (table["same_country"] == 1)
        & (table["device_age_days"] > 180)
        & (table["amount"] < 30)
    )
    return np.where(looks, RATE / RING_SHARE, 0.0)


def _merchant(name: str) -> MerchantClass:
    return NEW_MERCHANT_CLASS if name == NEW_MERCHANT else MERCHANTS[name]
