"""YAML without a library reads back as what it was; a stream of events in pieces too."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ctl.client import ServerSentEvent, _events, _target
from ctl.commands import pod_name
from ctl.output import as_json, as_yaml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_both_forms_read_back(value: Any) -> None:
    assert json.loads(as_json(value)) == value
    assert yaml.safe_load(as_yaml(value)) == value


@pytest.mark.parametrize("text", ["yes", "NO", "on", "null", "1.0", "1e3", "0x1f", "2026-11-24", "a: b", "", "~"])
def test_a_text_stays_a_text(text: str) -> None:
    assert yaml.safe_load(as_yaml({"value": text, text: 1})) == {"value": text, text: 1}


def test_a_stream_is_read() -> None:
    lines = [b": enoki\n", b"\n", b"id: 7\n", b"event: eni\n", b'data: {"id":7}\n', b"\n", b"event: missed\n"]
    lines += [b'data: {"after":1}\n', b"\n", b'data: {"cut']
    assert list(_events(iter(lines))) == [
        ServerSentEvent(name="eni", data={"id": 7}),
        ServerSentEvent(name="missed", data={"after": 1}),
    ]


def test_names_are_escaped_in_paths() -> None:
    assert _target(("v1", "explain", "pods", "a/b", "../x?y"), {}) == "/v1/explain/pods/a%2Fb/..%2Fx%3Fy"
    assert _target(("v1", "logs"), {"pod": "a&b", "limit": 3, "namespace": None}) == "/v1/logs?pod=a%26b&limit=3"


@pytest.mark.parametrize(("text", "names"), [("web-0", ("default", "web-0")), ("kube-system/a", ("kube-system", "a"))])
def test_pod_names(text: str, names: tuple[str, str]) -> None:
    assert pod_name(text) == names


@pytest.mark.parametrize("text", ["", "/", "/a", "a/", "a/b/c"])
def test_what_is_no_pod(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no pod"):
        pod_name(text)
