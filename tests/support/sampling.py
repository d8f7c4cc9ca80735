"""How much of what could be tried a test tries, and how to have the same or all of it again.

TEST_SEED=<number> takes the same again; without it the day is the seed, so that in time everything has its turn.
SAMPLE_ALL=1, as in `make test-heavy`, takes all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")
SEED = int(os.environ.get("TEST_SEED") or datetime.now(UTC).strftime("%Y%m%d"))
IS_FULL = bool(os.environ.get("SAMPLE_ALL"))


def sample(all_of_them: Sequence[T], count: int, *, seed: int = SEED) -> list[T]:
    """`count` of them in their order, all with SAMPLE_ALL=1; pytest shows what was taken when the test fails."""
    count = len(all_of_them) if IS_FULL else min(count, len(all_of_them))
    print(f"{count} of {len(all_of_them)}, TEST_SEED={seed}")
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    return [all_of_them[place] for place in sorted(chance.sample(range(len(all_of_them)), count))]


def cases(usual: int, *, full: int = 2_000) -> int:
    """How many cases a property is tried with."""
    return full if IS_FULL else usual
