"""From the bytes of a CNI request to its five members. Pure; every failure is a `CniError`.

The plugin embeds the runtime's standard input as it is, so the bytes are hostile: what it appends could try to smuggle
members into the request. Hence: one JSON object, known members only, none twice at any depth; the plugin writes all
five, so that whatever is smuggled in is there twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from api.problems import CniCode, CniError

MAX_BODY_BYTES = 1 << 20
"""Far above any real configuration (a few KiB, a cached result included), far below what would hurt the node."""
MAX_DEPTH = 64
"""Nesting of the body; a configuration with the result of a chain nests seven deep."""

_MEMBERS = frozenset({"container_id", "netns", "ifname", "args", "config"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A decoded body: the plugin's environment as strings (empty when unset) and the runtime's standard input."""

    container_id: str
    netns: str
    ifname: str
    args: str
    config: Mapping[str, Any]


def decode(body: bytes) -> Envelope:
    """Decode a request body.

    Raises: CniError 4 when a member has the wrong type, 6 when the body is not the JSON it must be.
    """
    document = _load(body)
    if not isinstance(document, dict):
        _undecodable("the request is not a JSON object")
    if unknown := document.keys() - _MEMBERS:
        _undecodable("the request has unknown members", ", ".join(sorted(unknown))[:200])
    if "config" not in document:
        _undecodable("the request has no network configuration")
    config = document["config"]
    if not isinstance(config, dict):
        _undecodable("the network configuration is not a JSON object")
    return Envelope(
        container_id=_text(document, "container_id"),
        netns=_text(document, "netns"),
        ifname=_text(document, "ifname"),
        args=_text(document, "args"),
        config=config,
    )


def _text(document: Mapping[str, Any], member: str) -> str:
    value = document.get(member, "")
    if not isinstance(value, str):
        raise CniError(CniCode.ENVIRONMENT_INVALID, f"`{member}` must be a string")
    return value


def _load(body: bytes) -> object:
    try:
        # Decoded here because json.loads would accept UTF-16 and UTF-32 bytes too.
        document: object = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as exc:
        _undecodable("the request is not UTF-8", str(exc)[:200])
    except RecursionError:
        _undecodable(f"the request is nested deeper than {MAX_DEPTH}")
    except ValueError as exc:
        _undecodable("the request is not valid JSON", str(exc)[:200])
    # Fewer brackets than levels cannot nest too deep: the exact look is for the unusual.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth_exceeds(document, MAX_DEPTH):
        _undecodable(f"the request is nested deeper than {MAX_DEPTH}")
    if b"\\u" in body and _has_lone_surrogate(document):
        _undecodable("the request has an escape sequence that is not a character")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in members if names.count(name) > 1)
        raise ValueError(f"member {ascii(twice)[:100]} appears twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _depth_exceeds(document: object, limit: int) -> bool:
    level: list[object] = [document]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return any(isinstance(node, dict | list) for node in level)


def _children(node: object) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _has_lone_surrogate(document: object) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _undecodable(msg: str, details: str = "") -> NoReturn:
    raise CniError(CniCode.CONTENT_UNDECODABLE, msg, details)
