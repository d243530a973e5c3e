"""The environment, read once, as one frozen `Settings`.

The names and meanings are those of the AWS VPC CNI plugin (v1.23) where it has a setting for the same thing, so that a
DaemonSet's `env` can move over unchanged; what is ours alone starts with `ENOKI_`. Three rules differ, on purpose:

- a value that is not allowed is refused at start, all of them at once, where the AWS plugin falls back to a default;
- an empty value means unset, for every setting (the AWS plugin is not consistent there);
- names of the AWS plugin that nothing here reads yet are reported, unless their value asks for what we do anyway.

The composition root turns `Settings` into the small policies of each part; nothing else sees it. Each field carries its
own documentation, from which scripts/configuration.py writes docs/configuration.md.
"""

from agent.settings.inert import NOT_HONOURED
from agent.settings.kinds import LogLevel
from agent.settings.loading import Documented, SettingsInvalid, documented, load
from agent.settings.table import Provenance, Settings

__all__ = [
    "NOT_HONOURED",
    "Documented",
    "LogLevel",
    "Provenance",
    "Settings",
    "SettingsInvalid",
    "documented",
    "load",
]
