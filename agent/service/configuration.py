"""Pure: the settings as the API shows them: with their origin, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.settings import Settings, documented
from api.node_schemas import ConfigView, SettingView

LEFT_OUT = "(left out)"

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|PRIVATE_KEY")
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]*@")

_Shown = str | int | bool | list[str] | dict[str, str] | None


def config_view(chosen: Settings, version: str) -> ConfigView:
    """Every setting, in the order of docs/configuration.md."""
    return ConfigView(
        version=version,
        settings=[
            SettingView(
                name=one.setting.name,
                value=shown(one.setting.name, getattr(chosen, one.field_name)),
                default=one.setting.default,
                provenance=chosen.provenance[one.setting.name],
                allowed=one.setting.kind.allowed,
                description=one.doc,
            )
            for one in documented()
        ],
        notices=list(chosen.notices),
    )


def shown(name: str, value: object) -> _Shown:
    """A value for the reader: without what is secret by its name, and without users and passwords in URLs."""
    if value is None or isinstance(value, bool | int):
        return value
    if _SECRET_NAME.search(name):
        return LEFT_OUT
    if isinstance(value, Mapping):
        return {str(key): _public(item) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        items = list(value)
        if items and all(isinstance(item, tuple) and len(item) == 2 for item in items):
            return {str(key): LEFT_OUT if _SECRET_NAME.search(str(key).upper()) else _public(it) for key, it in items}
        return [_public(item) for item in items]
    return _public(value)


def _public(value: object) -> str:
    return _USER_OF_URL.sub("", str(value))
