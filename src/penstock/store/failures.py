"""From what the object-store client reports to our errors; the only place that knows the client's words.

Messages are built from the answer's status and the store's short error code alone. The client's own text stays
out of them, and out of the chain of causes: it carries whole answers and addresses, and with them signatures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from obstore import exceptions

from penstock.errors import (
    AccessDenied,
    ObjectNotFound,
    PenstockError,
    PreconditionFailed,
    SampleChanged,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from penstock.store.limit import Outcome

__all__ = ["CLIENT_ERRORS", "CODE_ERRORS", "STATUS_ERRORS", "Failure", "classify"]

CLIENT_ERRORS = (exceptions.BaseError, OSError, ValueError)
"""What the client raises, and what waiting for it raises; anything else is a fault of the program."""

_STATUS = re.compile(r"status code: (\d{3})\b|\bstatus: (\d{3}),")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_KIND = re.compile(r"\bkind: (\w+),")
_METADATA_SERVICE = re.compile(r"//(169\.254\.169\.254|169\.254\.170\.\d+|metadata(\.google\.internal)?)[:/]")

_DENIED = (
    AccessDenied,
    "the store refuses these credentials; check them, their expiry and their rights (`penstock doctor URL` says "
    "where they came from)",
)
_BUSY = (StoreUnavailable, "the store is overloaded or failing; try again later")

STATUS_ERRORS: dict[int, tuple[type[PenstockError], str]] = {
    301: (StoreError, "the bucket lives in another region; set AWS_REGION to it"),
    304: (PreconditionFailed, "somebody else wrote first"),
    401: _DENIED,
    403: _DENIED,
    404: (ObjectNotFound, "check the bucket and the key"),
    408: (StoreUnavailable, "the request took too long to arrive; try again"),
    409: (StoreUnavailable, "another writer is at the same key; try again"),
    412: (PreconditionFailed, "somebody else wrote first"),
    416: (SampleChanged, "the object ends before the range that was asked for; pack or resolve it again"),
    429: _BUSY,
    501: (StoreError, "the server can't do this"),
    505: (StoreError, "the server can't do this"),
    507: (StoreFull, "the store has no room left"),
}
"""The class and the cure for a status; any other 5xx is like 429, any other status a plain StoreError."""

CODE_ERRORS: dict[str, tuple[type[PenstockError], str]] = {
    "NoSuchBucket": (ObjectNotFound, "there is no such bucket; check its name and the endpoint"),
    "ExpiredToken": (AccessDenied, "the credentials have expired; get new ones"),
    "RequestTimeTooSkewed": (AccessDenied, "this machine's clock is wrong; set it"),
    "InvalidAccessKeyId": _DENIED,
    "InvalidToken": _DENIED,
    "TokenRefreshRequired": _DENIED,
    "AuthorizationHeaderMalformed": (AccessDenied, "the bucket may live in another region; check AWS_REGION"),
    "RequestTimeout": (StoreUnavailable, "the request took too long to arrive; try again"),
    "SlowDown": _BUSY,
    "QuotaExceeded": (StoreFull, "the bucket's quota is used up"),
    "XMinioStorageFull": (StoreFull, "the store has no room left"),
}
"""The class and the cure for a store's own error code, which says more than its status."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of ours, and what it means for the limit on concurrent requests."""

    error: PenstockError
    outcome: Outcome


def classify(error: Exception, location: str, *, timeout_s: float) -> Failure:
    """Turn an exception of the client, or of waiting for it, into ours.

    Args:
        error: what was raised.
        location: what the request was about; must hold no secret.
        timeout_s: the deadline that a ``TimeoutError`` stands for.
    """
    if isinstance(error, PenstockError):
        return Failure(error, "failed")
    if isinstance(error, TimeoutError):
        return Failure(StoreUnavailable(f"{location}: no answer within {timeout_s:g} s; try again"), "failed")
    text = str(error)
    status = _first(_STATUS, text)
    code = _first(_CODE, text)
    if _METADATA_SERVICE.search(text):
        return Failure(_no_credentials(status, location), "failed")
    if status:
        return _answered(int(status), code, location)
    return Failure(_unanswered(error, text, location), "failed")


def _answered(status: int, code: str, location: str) -> Failure:
    fallback = _BUSY if status >= 500 else (StoreError, "the server refuses this request")
    kind, cure = CODE_ERRORS.get(code) or STATUS_ERRORS.get(status, fallback)
    said = f"{status} {code}".strip()
    throttled = status in {429, 503} or code == "SlowDown"
    return Failure(kind(f"{location}: {cure} (answer: {said})"), "throttled" if throttled else "answered")


def _unanswered(error: Exception, text: str, location: str) -> PenstockError:
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return PreconditionFailed(f"{location}: somebody else wrote first")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFound(f"{location}: no such object; check the bucket and the key")
    if "NotPartial" in text or "RangeNotSupported" in text:
        return StoreError(
            f"{location}: the server answered a request for a byte range with the whole object (200, not 206); "
            "use a server that supports ranges"
        )
    if isinstance(error, exceptions.InvalidPathError) or "parse path" in text:
        return StoreError(
            f"{location}: a key here can't be addressed (an empty part, '.', '..' or a control character)"
        )
    kind = _first(_KIND, text)
    if kind:
        return StoreUnavailable(f"{location}: {_BROKEN.get(kind, 'the connection failed')}; try again")
    return StoreError(f"{location}: the client failed ({type(error).__name__}); check the address and the settings")


def _no_credentials(status: str, location: str) -> StoreError:
    """The client had no credentials and asked the machine for some; a refusal is final, silence may pass."""
    kind = AccessDenied if status.startswith("4") else StoreUnavailable
    return kind(
        f"{location}: no credentials were given, and this machine's metadata service has none; set them in the "
        "environment (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    )


_BROKEN = {
    "Connect": "can't connect; check the address (`penstock doctor URL` shows it), the network and the server",
    "Timeout": "the server stopped answering",
    "Interrupted": "the connection broke",
    "Decode": "the answer was cut short or garbled",
}


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return next((group for group in found.groups() if group), "") if found else ""
