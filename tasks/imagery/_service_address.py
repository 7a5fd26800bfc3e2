"""The address of a service, taken apart: its query, and our own words behind ``#``."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from tasks.errors import BadInputError
from tasks.imagery.grid import Bounds
from tasks.imagery.identity import unsigned


@dataclass(frozen=True, slots=True)
class Address:
    """An address in parts.

    Attributes:
        base: scheme, host and path.
        query: names (as written) and values, in order.
        options: our own words behind ``#``, names in lower case.
    """

    base: str
    query: tuple[tuple[str, str], ...]
    options: dict[str, str]

    def get(self, name: str) -> str | None:
        """A query's value; names are compared without case, as OGC wants it."""
        return next((value for key, value in self.query if key.lower() == name), None)

    def without(self, names: Collection[str], *, safe: str = ",:/") -> str:
        """Base and query without these parameters; ends in ``?`` or ``&``, ready for more."""
        kept = [
            f"{quote(key, safe='')}={quote(value, safe=safe)}"
            for key, value in self.query
            if key.lower() not in names
        ]
        return self.base + "?" + "".join(pair + "&" for pair in kept)


def parse_address(uri: str, *, options: Collection[str]) -> Address:
    """The parts of ``uri``.

    Args:
        uri: an http(s) address.
        options: the words that may stand behind ``#``.

    Raises:
        BadInputError: another word stands there, or one without a value.
    """
    parts = urlsplit(uri)
    found: dict[str, str] = {}
    for name, value in parse_qsl(parts.fragment, keep_blank_values=True):
        if name.lower() not in options or not value:
            raise BadInputError(
                f"{unsigned(uri)} says {name}={value} behind '#'.",
                f"Known there: {', '.join(f'{option}=…' for option in sorted(options))}, joined with '&'."
                if options
                else "Nothing may stand behind '#' there.",
            )
        found[name.lower()] = value
    base = urlunsplit(parts._replace(query="", fragment=""))
    return Address(base, tuple(parse_qsl(parts.query, keep_blank_values=True)), found)


def four_numbers(text: str, what: str) -> Bounds:
    """(xmin, ymin, xmax, ymax) out of ``1,2,3,4``.

    Raises:
        BadInputError: that is not what it says.
    """
    try:
        first, second, third, fourth = (float(number) for number in text.split(","))
    except ValueError as error:
        raise BadInputError(f"{what} is {text!r}.", "Give four numbers with commas between.") from error
    numbers = (first, second, third, fourth)
    if not all(math.isfinite(number) for number in numbers) or first >= third or second >= fourth:
        raise BadInputError(
            f"{what} is {text!r}, which holds no area.", "Give the lower limits first, then the upper ones."
        )
    return numbers


def positive(text: str, what: str) -> float:
    """A positive number.

    Raises:
        BadInputError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise BadInputError(f"{what} is {text!r}.", "Give a positive number.")
    return number
