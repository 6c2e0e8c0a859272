"""Who may look. Pure.

The rule is the coordinator's own: on loopback everybody of this machine, elsewhere whoever knows the token. A browser
sends the token as the password of a login, programs send ``Authorization: Bearer <token>``.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from http import HTTPStatus

from penstock.coordinator.page.http import Answer, Request

__all__ = ["refused"]


def refused(request: Request, token: str | None) -> Answer | None:
    """What is answered instead, or None if the request may be answered.

    Args:
        request: of somebody.
        token: that they must know; None where everybody may look.
    """
    if token is None:
        # A page of elsewhere can let its own name lead to 127.0.0.1, and would then be of our origin.
        if _is_ours(request.headers.get("host", "localhost")):
            return None
        return Answer.text(
            HTTPStatus.MISDIRECTED_REQUEST, "without a token this page is served as localhost or by an address only"
        )
    given = _given(request.headers.get("authorization", ""))
    if hmac.compare_digest(given, token.encode("utf-8", "surrogatepass")):
        return None
    return Answer.text(
        HTTPStatus.UNAUTHORIZED,
        "this page wants the coordinator's token: as the password of any user, or as `Authorization: Bearer <token>`",
        WWW_Authenticate='Basic realm="penstock", charset="UTF-8"',
    )


def _given(authorization: str) -> bytes:
    scheme, _, credentials = authorization.partition(" ")
    credentials = credentials.strip()
    if scheme.lower() == "bearer":
        return credentials.encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def _is_ours(host: str) -> bool:
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".") == "localhost" or _address(name) is not None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
