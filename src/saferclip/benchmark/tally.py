"""What became of the candidates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from saferclip.benchmark.backends import NOT_UNSAFE

FILTERS = ("duplicate", "too different", "too similar", NOT_UNSAFE)


@dataclass
class Tally:
    """Candidates, images made for them, and rejections by reason; reasons besides the filters' come as they occur."""

    candidates: int = 0
    images: int = 0
    rejected: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(FILTERS, 0)))
