"""Read a request of the EC2 Query API: flat names like `Filter.1.Value.2` to typed values.

Whatever a handler has not read is unknown to it, so that the handlers themselves are the list of parameters. Sources:
EC2 Developer Guide, "Query requests for Amazon EC2", and the parameter names of the API reference of each action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from sim.model.errors import Ec2Error, invalid_combination, invalid_value

T = TypeVar("T")

_COMMON = frozenset({"Action", "Version", "DryRun"})
_AUTHENTICATION = ("X-Amz-", "AWSAccessKeyId", "Signature", "SecurityToken", "Timestamp", "Expires")


class Parameters:
    """The parameters of one request, or of one structure in it."""

    def __init__(self, form: Mapping[str, str], *, prefix: str = "", unread: set[str] | None = None) -> None:
        self._form = form
        self._prefix = prefix
        self._unread = (
            {k for k in form if k not in _COMMON and not k.startswith(_AUTHENTICATION)} if unread is None else unread
        )

    def optional(self, name: str) -> str | None:
        """A string, or None when it is absent."""
        key = self._prefix + name
        self._unread.discard(key)
        return self._form.get(key)

    def text(self, name: str) -> str:
        """Raises: Ec2Error(MissingParameter) when it is absent or empty."""
        value = self.optional(name)
        if not value:
            raise Ec2Error("MissingParameter", f"The request must contain the parameter {self._prefix}{name}")
        return value

    def integer(self, name: str) -> int | None:
        """Raises: Ec2Error(InvalidParameterValue)."""
        return self._parsed(name, int, "an integer")

    def boolean(self, name: str) -> bool | None:
        """Raises: Ec2Error(InvalidParameterValue)."""
        return self._parsed(name, _boolean, "true or false")

    def count(self, name: str) -> int:
        """A number of things asked for: 0 when it is absent.

        Raises: Ec2Error(InvalidParameterValue) when it is there and below 1.
        """
        value = self.integer(name)
        if value is not None and value < 1:
            raise invalid_value(
                f"Value ({value}) for parameter {self._prefix}{name} is invalid. It must be at least 1."
            )
        return value or 0

    def address4(self, name: str) -> IPv4Address | None:
        """Raises: Ec2Error(InvalidParameterValue)."""
        return self._parsed(name, IPv4Address, "an IPv4 address")

    def texts(self, name: str, field: str = "") -> tuple[str, ...]:
        """A list of strings: `Name.1`, `Name.2`, ..., or with `field` one field each of a list of structures."""
        ending = f".{field}" if field else ""
        keys = [f"{self._prefix}{name}.{n}{ending}" for n in self._indexes(name)]
        found = [key for key in keys if key in self._form]
        self._unread.difference_update(found)
        return tuple(self._form[key] for key in found)

    def addresses4(self, name: str, field: str = "") -> tuple[IPv4Address, ...]:
        """As `texts`, without repetitions. Raises: Ec2Error(InvalidParameterValue)."""
        return self._each(name, field, IPv4Address)

    def prefixes4(self, name: str, field: str = "") -> tuple[IPv4Network, ...]:
        """As `addresses4`."""
        return self._each(name, field, IPv4Network)

    def addresses6(self, name: str, field: str = "") -> tuple[IPv6Address, ...]:
        """As `addresses4`."""
        return self._each(name, field, IPv6Address)

    def prefixes6(self, name: str, field: str = "") -> tuple[IPv6Network, ...]:
        """As `addresses4`."""
        return self._each(name, field, IPv6Network)

    def structures(self, name: str) -> tuple[Parameters, ...]:
        """A list of structures: `Name.1.Field`, `Name.2.Field`, ..."""
        return tuple(
            Parameters(self._form, prefix=f"{self._prefix}{name}.{n}.", unread=self._unread)
            for n in self._indexes(name)
        )

    def structure(self, name: str) -> Parameters | None:
        """One structure: `Name.Field`; None when no field of it is there."""
        prefix = f"{self._prefix}{name}."
        if not any(k.startswith(prefix) for k in self._form):
            return None
        return Parameters(self._form, prefix=prefix, unread=self._unread)

    def finish(self) -> None:
        """Every parameter has been read that the action knows.

        Raises: Ec2Error(UnknownParameter) for the first one that is left.
        """
        for name in sorted(self._unread):
            raise Ec2Error("UnknownParameter", f"The parameter {name} is not recognized")

    def _indexes(self, name: str) -> list[str]:
        """The list indexes in use under `name`, as they are written, in the order of their numbers."""
        start = f"{self._prefix}{name}."
        written = {k[len(start) :].split(".", 1)[0] for k in self._form if k.startswith(start)}
        return sorted((n for n in written if n.isascii() and n.isdigit()), key=int)

    def _parsed(self, name: str, parse: Callable[[str], T], what: str) -> T | None:
        value = self.optional(name)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError:
            raise invalid_value(
                f"Value ({value}) for parameter {self._prefix}{name} is invalid. It must be {what}."
            ) from None

    def _each(self, name: str, field: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        try:
            return tuple(dict.fromkeys(parse(value) for value in self.texts(name, field)))
        except ValueError as problem:
            raise invalid_value(f"Invalid value for parameter {self._prefix}{name}: {problem}") from None


def at_most_one(given: Mapping[str, object]) -> None:
    """Raises: Ec2Error(InvalidParameterCombination) when more than one of the named values is set."""
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise invalid_combination(f"The parameters {' and '.join(names)} cannot be used together")


def _boolean(value: str) -> bool:
    match value.lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case _:
            raise ValueError(value)
