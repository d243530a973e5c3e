"""Generated requests that no runtime may get away with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

GOOD: dict[str, Any] = {
    "container_id": "c1",
    "netns": "/var/run/netns/c1",
    "ifname": "eth0",
    "args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
    "config": {"cniVersion": "1.1.0", "name": "enoki", "type": "enoki"},
}

ENVIRONMENT, UNDECODABLE, CONFIG, VERSION = 4, 6, 7, 1

FORBIDDEN_IN_ID = st.sampled_from(list(" /:;\\\"'\t\n\r\x01\x7f$é\u2028中"))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def _spoiled(draw: st.DrawFn, good: str, spoilers: st.SearchStrategy[str]) -> str:
    """`good` with one forbidden character somewhere."""
    at = draw(st.integers(0, len(good)))
    return good[:at] + draw(spoilers) + good[at:]


BAD_CONTAINER_ID = st.one_of(
    st.just(""),
    st.sampled_from(["-a", ".a", "_a", "..", "a" * 129]),
    _spoiled("3f5a9c", FORBIDDEN_IN_ID),
)
BAD_IFNAME = st.one_of(
    st.sampled_from(["", ".", "..", "a" * 16, "eth%d", "ünïcödë"]),
    _spoiled("eth0", st.sampled_from(list(" /:%\t\n\r\x0b\x01\x7fé\u2003"))),
)
BAD_NETNS = st.one_of(
    st.sampled_from(["", "netns", "./netns", "../x", "/" + "x" * 4095]),
    _spoiled("/run/netns", st.sampled_from(list("\t\n\r\x01\x7f"))),
)
BAD_ARGS = st.one_of(
    st.sampled_from(
        [
            "=",
            ";",
            "A",
            "A=1",
            "IgnoreUnknown=maybe",
            "IgnoreUnknown=1;",
            "IgnoreUnknown=1;A=b=c",
            "K8S_POD_NAME=a;K8S_POD_NAME=a",
            "K8S_POD_NAME=web-0",
            "K8S_POD_NAMESPACE=default",
            "K8S_POD_NAMESPACE=a.b;K8S_POD_NAME=web",
            f"K8S_POD_NAMESPACE={'a' * 64};K8S_POD_NAME=web",
            f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={'a' * 254}",
            "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a..b",
            "K8S_POD_NAMESPACE=default;K8S_POD_NAME=../../etc",
            "K8S_POD_UID=a b",
            "K8S_POD_INFRA_CONTAINER_ID=/",
        ]
    ),
    _spoiled("web", st.sampled_from(list(' _/:\\"A\t\n\x7fé'))).map(
        lambda name: f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"
    ),
    _spoiled("kube", st.sampled_from(list(' ._/:\\"A\t\n\x7fé'))).map(
        lambda name: f"K8S_POD_NAMESPACE={name};K8S_POD_NAME=web-0"
    ),
)
BAD_NAME = st.one_of(st.sampled_from(["", "-a", "a" * 254]), _spoiled("enoki", FORBIDDEN_IN_ID), SCALARS)
BAD_TYPE = st.one_of(st.sampled_from(["", "a/b", "a\nb"]), SCALARS)
BAD_VERSION = st.one_of(
    st.sampled_from(["", "0.2.0", "0.3.0", "1", "1.1", "1.1.0 ", "01.1.0", "1.2.0", "2.0.0"]), SCALARS
)
BAD_MTU = st.one_of(
    st.integers(max_value=575), st.integers(min_value=9002), st.sampled_from(["x", "1.5", "-1", "99999", 1500.0, True])
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRequest:
    """A body (or, for the plugin, environment and standard input) and the code it must be refused with."""

    members: dict[str, str]
    config: bytes
    code: int


def _config(**changes: Any) -> bytes:
    members = {key: value for key, value in (GOOD["config"] | changes).items() if value is not None}
    return json.dumps(members).encode()


def _member(name: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[BadRequest]:
    return values.map(lambda value: BadRequest(members={name: value}, config=_config(), code=ENVIRONMENT))


def _in_config(name: str, values: st.SearchStrategy[Any], code: int) -> st.SearchStrategy[BadRequest]:
    return values.map(lambda value: BadRequest(members={}, config=_config(**{name: value}), code=code))


def _smuggled(good: bytes) -> st.SearchStrategy[bytes]:
    key = st.sampled_from(["container_id", "netns", "ifname", "args", "config", "x", "", "Config"])
    value = st.one_of(SCALARS.map(json.dumps), TEXT.map(json.dumps), st.just("{}"))
    return st.builds(lambda k, v: good + f",{json.dumps(k)}:{v}".encode(), key, value)


BAD_BYTES = st.one_of(
    _smuggled(_config()),
    st.integers(0, len(_config()) - 1).map(lambda end: _config()[:end]),
    st.binary(max_size=40).map(lambda junk: b"\xff" + junk),
    st.binary(min_size=1, max_size=40).map(lambda junk: _config() + b"}" + junk),
    TEXT.map(lambda text: json.dumps(text).encode()),
    SCALARS.map(lambda scalar: json.dumps(scalar).encode()),
    st.integers(64, 5000).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth),
    st.integers(64, 5000).map(lambda depth: _config()[:-1] + b',"a":' + b"[" * depth + b"]" * depth + b"}"),
    st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000]).map(
        lambda number: _config()[:-1] + b',"a":' + number.encode() + b"}"
    ),
    st.integers(0xD800, 0xDFFF).map(lambda code: _config()[:-1] + b',"a":"\\u%x"}' % code),
    TEXT.map(lambda key: _config()[:-1] + b',"a":{%s:1,%s:2}}' % ((json.dumps(key).encode(),) * 2)),
    st.just(_config()[:-1] + b',"name":"other"}'),
    st.just(_config().decode().encode("utf-16")),
    st.just(b"\xef\xbb\xbf" + _config()),
)

BAD_REQUESTS: st.SearchStrategy[BadRequest] = st.one_of(
    _member("container_id", BAD_CONTAINER_ID),
    _member("ifname", BAD_IFNAME),
    _member("netns", BAD_NETNS),
    _member("args", BAD_ARGS),
    _in_config("name", BAD_NAME, CONFIG),
    _in_config("type", BAD_TYPE, CONFIG),
    _in_config("mtu", BAD_MTU, CONFIG),
    _in_config("cniVersion", BAD_VERSION, VERSION),
    BAD_BYTES.map(lambda config: BadRequest(members={}, config=config, code=UNDECODABLE)),
)
"""Refused for ADD; each with the code it must be refused with."""


def body(request: BadRequest) -> bytes:
    """The HTTP body as the plugin would write it."""
    members = {key: value for key, value in GOOD.items() if key != "config"} | request.members
    return json.dumps(members).encode()[:-1] + b',"config":' + request.config + b"}"
