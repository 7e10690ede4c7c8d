"""The exception for errors that a user can fix: it names the value, the rule and the remedy."""

from __future__ import annotations

from functools import partial
from typing import Any


class SymDenoiseError(ValueError):
    """Input that cannot be used, in one line: the value, the rule that it breaks, and what to do instead."""

    def __init__(self, value: str, *, rule: str, remedy: str) -> None:
        self.value, self.rule, self.remedy = value, rule, remedy
        super().__init__(f"{value}: {rule}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled with positional arguments only.
        return partial(type(self), self.value, rule=self.rule, remedy=self.remedy), ()
