"""Kinds of settings: which texts are allowed, and the value each stands for. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from agent.datapath import layout
from agent.datapath.policy import SnatPort


class LogLevel(StrEnum):
    """Names that `logging.Logger.setLevel` takes."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    FATAL = "FATAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A set of allowed texts.

    parse: the value of a text; raises ValueError when the text is not allowed. Sees "" only as a default.
    allowed: completes the sentence "allowed: ...".
    """

    parse: Callable[[str], object]
    allowed: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting beside the type of its field.

    default: as a reader would write it in the environment; empty for unset.
    """

    name: str
    kind: Kind
    _: KW_ONLY
    default: str


_GO_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_GO_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def boolean(text: str) -> bool:
    """Exactly the spellings of Go's strconv.ParseBool, which the AWS plugin uses."""
    if text in _GO_TRUE:
        return True
    if text in _GO_FALSE:
        return False
    raise ValueError(text)


def _integer(text: str) -> int:
    """As Go's strconv.Atoi: an optional sign and ASCII digits. Python's int() also takes spaces and underscores."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def integers(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        value = _integer(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Kind(parse=parse, allowed=f"an integer from {low} to {high}")


def _max_eni(text: str) -> int | None:
    value = _integer(text) if text else 0
    return value if value >= 1 else None


def _networks(text: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def _connmark(text: str) -> int:
    """As the AWS plugin reads it, with Go's base prefixes; bits that packets of ours carry already are refused."""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|0[oO]?[0-7]{1,11}|0[bB][01]{1,32}|[1-9][0-9]{0,9}", text):
        raise ValueError(text)
    octal = re.fullmatch(r"0[0-7]+", text)
    value = int(text, 8 if octal else 0)
    if not 1 <= value <= 0xFFFFFFFF or value & layout.MARK_KEPT_MASK:
        raise ValueError(text)
    return value


def _tags(text: str) -> tuple[tuple[str, str], ...]:
    """EC2 user guide, "Tag restrictions": keys of 1 to 128 characters, values of up to 256; `aws:` is reserved."""
    found = json.loads(text)
    # An ENI takes 50 tags; five are kept for our own.
    if not isinstance(found, dict) or len(found) > 45:
        raise ValueError(text)
    for key, value in found.items():
        if not isinstance(value, str) or not 1 <= len(key) <= 128 or len(value) > 256 or key.startswith("aws:"):
            raise ValueError(text)
    return tuple(found.items())


def _matching(pattern: str, allowed: str) -> Kind:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(parse=parse, allowed=allowed)


def _absolute_path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _socket_path(text: str) -> Path:
    # sockaddr_un.sun_path holds 108 bytes, the closing zero included (unix(7)).
    if not text.startswith("/") or len(text.encode()) > 107:
        raise ValueError(text)
    return Path(text)


def _log_file(text: str) -> Path | None:
    # The AWS plugin's two words for "no file".
    return None if text.lower() in {"stderr", "stdout"} else _absolute_path(text)


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not 1 <= _integer(port) <= 65535:
        raise ValueError(text)
    return str(ip_address(host.removeprefix("[").removesuffix("]"))), _integer(port)


def _dev_http_allowances(text: str) -> tuple[str, ...]:
    found = {part.strip() for part in text.split(",") if part.strip()}
    if not found <= {"remote", "writes"}:
        raise ValueError(text)
    return tuple(sorted(found))


def _or_unset(kind: Kind) -> Kind:
    return Kind(parse=lambda text: kind.parse(text) if text else None, allowed=kind.allowed)


BOOLEAN = Kind(parse=boolean, allowed="true or false")
COUNT = integers(0, 10_000)
SECONDS = integers(0, 86_400)
# 576: every IPv4 host takes that much (RFC 791); 9001: EC2's jumbo frames. The AWS plugin's range.
MTU = integers(576, 9001)
MTU_OR_UNSET = Kind(parse=lambda text: MTU.parse(text) if text else None, allowed=MTU.allowed)
MAX_ENI = Kind(parse=_max_eni, allowed="an integer; 0 or less is unset")
RANDOMIZE_SNAT = Kind(parse=SnatPort, allowed="prng, hashrandom or none")
NETWORKS = Kind(parse=_networks, allowed="IPv4 networks separated by commas")
CONNMARK = Kind(parse=_connmark, allowed="a number from 0x80 to 0xffffffff that has no bit of 0x7f, such as 0x80")
TAGS = Kind(
    parse=_tags,
    allowed="a JSON object of up to 45 tags, keys of 1 to 128 characters and not in aws:, texts of up to 256",
)
# `eth`, `lo` and `vlan` belong to links that are not ours; the AWS plugin refuses exactly these.
VETH_PREFIX = _matching(
    "(?!(?:eth|lo|vlan)$)[a-z][a-z0-9]{0,3}",
    "1 to 4 lower-case letters and digits, a letter first, but not eth, lo or vlan",
)
DNS_NAME = _matching("([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?", "a DNS name of at most 253 lower-case characters")
LABEL_KEY = _matching(
    "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?",
    "the key of a label: a name of at most 63 characters, perhaps after a DNS name and a slash",
)
URL_OR_UNSET = _matching("(https?://[^/\\s?#]+/?)?", "http:// or https:// and a host, perhaps a port")
HOST = _matching("[A-Za-z0-9.:-]{0,253}", "a host name or an address")
PORT = _matching("[0-9]{0,5}", "a number")
FILE_OR_UNSET = Kind(parse=lambda text: _absolute_path(text) if text else None, allowed="an absolute path of one file")
CLUSTER_NAME = _matching(".{0,256}", "a text of at most 256 characters")
URL = _matching("https?://[^/\\s?#]+/?", "http:// or https:// and a host, perhaps a port")
DIRECTORY = Kind(parse=_absolute_path, allowed="an absolute path")
DIRECTORY_OR_UNSET = Kind(parse=lambda text: DIRECTORY.parse(text) if text else None, allowed=DIRECTORY.allowed)
CNI_VERSION = _matching("0\\.4\\.0|1\\.0\\.0", "0.4.0 or 1.0.0")
SOCKET_PATH = Kind(parse=_socket_path, allowed="an absolute path of at most 107 bytes")
DIRECTORY_OR_UNSET = _or_unset(DIRECTORY)
SOCKET_PATH_OR_UNSET = _or_unset(SOCKET_PATH)
LOG_FILE = Kind(parse=_log_file, allowed="stderr, stdout or an absolute path")
HOST_AND_PORT = Kind(parse=_host_and_port, allowed="an IP address, a colon and a port from 1 to 65535")
HOST_AND_PORT_OR_UNSET = _or_unset(HOST_AND_PORT)
DEV_HTTP_ALLOWANCES = Kind(parse=_dev_http_allowances, allowed="remote, writes, or both with a comma")
LOG_LEVEL = Kind(
    parse=lambda text: LogLevel(text.upper()), allowed="debug, info, warn, error or fatal, in upper or lower case"
)
