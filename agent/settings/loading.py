"""From the environment to `Settings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, get_type_hints

from agent.settings.inert import NOT_HONOURED
from agent.settings.kinds import Setting, boolean
from agent.settings.table import Provenance, Settings

RESERVED_TAG_MARK = "k8s.amazonaws.com"
"""Tag keys that contain it are Kubernetes' own; the AWS plugin leaves them out of ADDITIONAL_ENI_TAGS too."""


class SettingsInvalid(Exception):
    """One or more settings have values that are not allowed.

    problems: one sentence per setting: name, value, what is allowed.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """A setting together with the field it fills and the text that explains it."""

    field_name: str
    setting: Setting
    doc: str


def documented() -> tuple[Documented, ...]:
    """Every setting, in the order of `Settings`."""
    found: list[Documented] = []
    for field_name, hint in get_type_hints(Settings, include_extras=True).items():
        match getattr(hint, "__metadata__", ()):
            case (Setting() as setting, str(doc)):
                found.append(Documented(field_name=field_name, setting=setting, doc=doc))
    return tuple(found)


def load(
    environ: Mapping[str, str] = os.environ,  # noqa: TID251  # the one place
    arguments: Mapping[str, str] | None = None,
) -> Settings:
    """Read the environment; what the command line says, by the settings' names, counts more.

    Raises: SettingsInvalid with every problem found.
    """
    values: dict[str, Any] = {}
    provenance: dict[str, Provenance] = {}
    problems: list[str] = []
    for one in documented():
        setting = one.setting
        argument = (arguments or {}).get(setting.name, "")
        text = argument or environ.get(setting.name, "")
        told = Provenance.ARGUMENT if argument else Provenance.ENVIRONMENT
        provenance[setting.name] = told if text else Provenance.DEFAULT
        try:
            values[one.field_name] = setting.kind.parse(text or setting.default)
        except ValueError:
            problems.append(f'{setting.name} is "{text}"; allowed: {setting.kind.allowed}')
    problems += _contradictions(values)
    if problems:
        raise SettingsInvalid(tuple(problems))
    if values["pod_mtu"] is None:
        values["pod_mtu"] = values["eni_mtu"]
    tags: tuple[tuple[str, str], ...] = values["additional_eni_tags"]
    values["additional_eni_tags"] = tuple(tag for tag in tags if RESERVED_TAG_MARK not in tag[0])
    return Settings(**values, provenance=provenance, notices=_notices(environ, tags))


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Values that are allowed, each by itself."""
    dev_http, allow = values.get("dev_http"), values.get("dev_http_allow", ())
    if dev_http and not ip_address(dev_http[0]).is_loopback and "remote" not in allow:
        return [f"ENOKI_DEV_HTTP is on {dev_http[0]}; allowed: loopback, unless ENOKI_DEV_HTTP_ALLOW says remote"]
    return []


def _notices(environ: Mapping[str, str], tags: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    notices: list[str] = []
    without_effect = [
        f"{name}={environ[name]}" for name, inert in NOT_HONOURED.items() if not _asks_nothing(environ.get(name), inert)
    ]
    if without_effect:
        notices.append(f"settings of the AWS plugin without effect in this version: {', '.join(without_effect)}")
    reserved = [key for key, _ in tags if RESERVED_TAG_MARK in key]
    if reserved:
        notices.append(f"ADDITIONAL_ENI_TAGS: keys with {RESERVED_TAG_MARK} are left out: {', '.join(reserved)}")
    return tuple(notices)


def _asks_nothing(text: str | None, inert: frozenset[str]) -> bool:
    if not text:
        return True
    try:
        return str(boolean(text)).lower() in inert or text.lower() in inert
    except ValueError:
        return text.lower() in inert
