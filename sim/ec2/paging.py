"""`MaxResults` and `NextToken` (EC2 Developer Guide, "Pagination with the Amazon EC2 API").

Results are in the order of their identifiers, and a token names the last one given out: items that appear or vanish
between two pages neither repeat nor hide others.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sim.ec2.parameters import Parameters
from sim.model.errors import Ec2Error, invalid_combination, invalid_value

R = TypeVar("R")

LEAST_COUNT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of the results is wanted.

    after: identifier of the last result of the page before; empty for the first page.
    size_count: None for everything.
    """

    action: str
    after: str
    size_count: int | None


def read_page(parameters: Parameters, action: str, *, ids: Sequence[str] = (), most_count: int = 1000) -> Page:
    """`MaxResults` (5 to `most_count`, not with identifiers) and `NextToken`.

    Raises: Ec2Error(InvalidParameterValue, InvalidParameterCombination, InvalidPaginationToken).
    """
    size_count = parameters.integer("MaxResults")
    token = parameters.optional("NextToken")
    if size_count is not None and not LEAST_COUNT <= size_count <= most_count:
        raise invalid_value(
            f"Value ( {size_count} ) for parameter maxResults is invalid. "
            f"Expecting a value between {LEAST_COUNT} and {most_count}."
        )
    if ids and size_count is not None:
        raise invalid_combination("A list of identifiers cannot be used with the parameter maxResults")
    return Page(action=action, after=_decode(token, action) if token else "", size_count=size_count)


def cut(page: Page, results: Iterable[R], identify: Callable[[R], str]) -> tuple[list[R], str | None]:
    """The results of this page, and the token for the next one; None when this is the last."""
    rest = sorted((r for r in results if identify(r) > page.after), key=identify)
    if page.size_count is None or len(rest) <= page.size_count:
        return rest, None
    shown = rest[: page.size_count]
    return shown, base64.urlsafe_b64encode(f"{page.action}/{identify(shown[-1])}".encode()).decode()


def _decode(token: str, action: str) -> str:
    try:
        made_by, _, after = base64.urlsafe_b64decode(token.encode()).decode().partition("/")
    except (binascii.Error, UnicodeDecodeError):
        made_by, after = "", ""
    if made_by != action or not after:
        raise Ec2Error("InvalidPaginationToken", "The specified pagination token is not valid or has expired.")
    return after
