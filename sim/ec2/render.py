"""Write an answer of the EC2 Query API as XML (EC2 Developer Guide, "Query requests for Amazon EC2")."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"

Body = Mapping[str, "Value"]
Value = str | int | float | bool | None | Body | Sequence["Value"]
"""A tree: a mapping is a structure, a sequence a list of `item` elements, None is left out."""


def answer(action: str, body: Body, request_id: str) -> bytes:
    """The document for a call that succeeded."""
    name = f"{action}Response"
    inner = _element("requestId", request_id) + _fields(body)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{NAMESPACE}">{inner}</{name}>'.encode()


def error(code: str, message: str, request_id: str) -> bytes:
    """The document for a call that failed."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error>'
        f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        f"</Error></Errors><RequestID>{escape(request_id)}</RequestID></Response>"
    ).encode()


def timestamp(time_s: float) -> str:
    """Seconds since the Unix epoch as EC2 writes them: UTC with milliseconds."""
    moment = datetime.datetime.fromtimestamp(time_s, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _fields(body: Body) -> str:
    return "".join(_element(name, value) for name, value in body.items())


def _element(name: str, value: Value) -> str:
    match value:
        case None:
            return ""
        case bool():
            return f"<{name}>{'true' if value else 'false'}</{name}>"
        case str() | int() | float():
            return f"<{name}>{escape(str(value))}</{name}>"
        case Mapping():
            return f"<{name}>{_fields(value)}</{name}>"
        case _:
            return f"<{name}>{''.join(_element('item', each) for each in value)}</{name}>"
