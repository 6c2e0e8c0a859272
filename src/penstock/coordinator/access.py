"""Who may talk to a coordinator, and where it listens."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from penstock.errors import ConfigError
from penstock.net import is_loopback, split_address

__all__ = ["Access", "TokenCheck", "check_address", "check_token", "credentials"]

_HEALTH: Final = "/grpc.health.v1.Health/"


@dataclass(frozen=True, slots=True)
class Access:
    """What a client has to show, and what it is shown.

    Attributes:
        token: in metadata, as ``authorization: Bearer <token>``; empty = none.
        tls_cert: our certificate, a PEM file; None = no TLS.
        tls_key: its key, a PEM file; None = in the same file.
        tls_client_ca: who vouches for clients, a PEM file: they must have a certificate of theirs.
    """

    token: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    @property
    def knows_clients(self) -> bool:
        """Whether not everybody is let in."""
        return bool(self.token) or self.tls_client_ca is not None


def check_address(address: str, access: Access) -> None:
    """Let only those in whom we know, beyond this machine.

    Raises:
        ConfigError: everybody who reaches the address could take part.
    """
    host, _ = split_address(address)
    if not is_loopback(host) and not access.knows_clients:
        raise ConfigError(
            f"addr {address} can be reached from other machines, and whoever reaches it could take part in the job; "
            "set PENSTOCK_COORD_TOKEN, or --tls-client-ca, or listen on 127.0.0.1"
        )


def check_token(token: str) -> None:
    """A token goes into a header, which holds visible ASCII only.

    Raises:
        ConfigError: it has something else in it.
    """
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            "the coordinator's token has characters other than visible ASCII, so no node could send it; look for a "
            "space or the end of a line, and give letters and digits"
        )


def credentials(access: Access) -> Any:
    """The credentials of a server; None = no TLS.

    Raises:
        ConfigError: a file can't be read, or something is missing.
    """
    if access.tls_cert is None:
        if access.tls_key or access.tls_client_ca:
            raise ConfigError("--tls-key and --tls-client-ca take --tls-cert, the coordinator's own certificate")
        return None
    cert = _pem("--tls-cert", access.tls_cert)
    key = cert if access.tls_key is None else _pem("--tls-key", access.tls_key)
    ca = None if access.tls_client_ca is None else _pem("--tls-client-ca", access.tls_client_ca)
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=ca is not None)


def _pem(option: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {path} can't be read: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{option} {path} isn't a PEM file")
    return data


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets only calls through that carry the token. Whether we live may be asked without it.

    Args:
        token: what they carry.
    """

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_HEALTH):
            return handler
        given = dict(details.invocation_metadata).get("authorization", "")
        given_bytes = given if isinstance(given, bytes) else given.encode()
        if hmac.compare_digest(given_bytes, self._wanted):
            return handler
        what = "another token than this coordinator's" if given_bytes else "no token"
        return _refusing(handler, f"{what} was given; set PENSTOCK_COORD_TOKEN to the coordinator's")


def _refusing(handler: Any, reason: str) -> Any:
    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    kind = grpc.unary_unary_rpc_method_handler
    if handler.response_streaming:
        kind = grpc.unary_stream_rpc_method_handler
    if handler.request_streaming:
        kind = grpc.stream_stream_rpc_method_handler
    return kind(refuse, None, handler.response_serializer)  # nor is what they say read
