"""Failures as they cross the API: CNI error objects under `/v1/cni`, problem details (RFC 9457) elsewhere.

A service raises `CniError` from its CNI methods and `Problem` from its other methods; whatever else it raises is a
bug and is reported as code 999 or status 500, without a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

Extension = str | int | float | None | dict[str, str | int | float]


class CniCode(IntEnum):
    """Error codes of CNI spec 1.1, section "Error"; from 100 on they are ours."""

    VERSION_UNSUPPORTED = 1
    FIELD_UNSUPPORTED = 2
    CONTAINER_UNKNOWN = 3
    ENVIRONMENT_INVALID = 4
    IO_FAILED = 5
    CONTENT_UNDECODABLE = 6
    NETWORK_CONFIG_INVALID = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    """STATUS: the plugin cannot serve ADD."""
    LIMITED_CONNECTIVITY = 51
    """STATUS: as 50, and existing containers may have lost connectivity."""
    SUPERSEDED = 101
    """A newer request (a DEL, or an ADD for the same pod) overtook this one."""
    DRIFTED = 102
    """CHECK: the kernel differs from what ADD made."""
    KERNEL_REFUSED = 103
    """The kernel did not take a change; what had been done is undone. Asking again may help."""
    FORBIDDEN = 104
    """The caller is not root. Changing anything is for root alone."""
    INTERNAL = 999


_STATUS: Mapping[int, int] = {
    CniCode.CONTAINER_UNKNOWN: 404,
    CniCode.SUPERSEDED: 409,
    CniCode.DRIFTED: 409,
    CniCode.KERNEL_REFUSED: 503,
    CniCode.FORBIDDEN: 403,
    CniCode.TRY_AGAIN_LATER: 503,
    CniCode.NOT_AVAILABLE: 503,
    CniCode.LIMITED_CONNECTIVITY: 503,
    CniCode.INTERNAL: 500,
}


CAUSES: Mapping[int, str] = {
    CniCode.VERSION_UNSUPPORTED: "cni_version_unsupported",
    CniCode.ENVIRONMENT_INVALID: "request_invalid",
    CniCode.CONTENT_UNDECODABLE: "content_undecodable",
    CniCode.NETWORK_CONFIG_INVALID: "network_config_invalid",
}
"""The name of the cause when a request ends here, before the service has heard of it."""


class CniError(Exception):
    """An error object for the container runtime.

    code: a `CniCode`, or any other number a plugin may use (CNI spec 1.1: 100 and above).
    msg: one sentence; the runtime shows it, `kubectl describe pod` repeats it.
    details: evidence and remedy, in prose; may be empty.
    http_status: by default 404, 409, 500 or 503 where the code means that, otherwise 400.
    """

    def __init__(self, code: int, msg: str, details: str = "", http_status: int | None = None) -> None:
        super().__init__(msg)
        self.code = int(code)
        self.msg = msg
        self.details = details
        self.http_status = _STATUS.get(self.code, 400) if http_status is None else http_status

    def __str__(self) -> str:
        return f"CNI error {self.code}: {self.msg}"


class Problem(Exception):
    """A problem details object (RFC 9457) for every route outside `/v1/cni`.

    status: HTTP status.
    title: the kind of problem; the same words each time.
    detail: what happened this time.
    extensions: further members, for example `cause`, `evidence`, `remedy`, `retry_after_s`.
    """

    def __init__(self, status: int, title: str, detail: str = "", extensions: Mapping[str, Extension] = {}) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status = status
        self.title = title
        self.detail = detail
        self.extensions = dict(extensions)
