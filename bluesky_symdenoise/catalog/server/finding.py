"""One result of checking a server, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["OK", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One result of a check; `remedy` is empty if all is well."""

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON values."""
        return asdict(self)
