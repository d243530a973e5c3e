"""Who asks, and what RBAC allows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.kube.store import Kind, Refused

Permission = tuple[str, str, str]
"""API group, resource, verb: a line of RBAC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who holds a token. may: what RBAC allows; None: everything."""

    name: str = "kubernetes-admin"
    may: frozenset[Permission] | None = None


def authorize(
    users: Mapping[str, User], authorization: str, *, verb: str, kind: Kind, namespace: str, name: str
) -> None:
    """Take a request or refuse it. users: by token; without any, everybody may do everything.

    authorization: the header. namespace, name: of what is asked for, where it has them. Raises: Refused(401, 403).
    """
    if not users:
        return
    user = users.get(authorization.removeprefix("Bearer "))
    if user is None:
        raise Refused(401, "Unauthorized", "Unauthorized")
    if user.may is None or (kind.group, kind.plural, verb) in user.may:
        return
    what = f'{kind.qualified} "{name}"' if name else kind.qualified
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    raise Refused(
        403,
        "Forbidden",
        f'{what} is forbidden: User "{user.name}" cannot {verb} resource "{kind.plural}" in API group "{kind.group}"'
        f" {where}",
    )
