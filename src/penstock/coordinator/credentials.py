"""Who a node is for a coordinator, how it knows that the coordinator is its own, and why a line can't be had."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import grpc

from penstock.errors import ConfigError, CoordinatorRefused, PenstockError
from penstock.net import split_address

__all__ = ["Credentials", "fault_of"]

_GRPC: Final = "h2"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are for a coordinator, and how we know that it is ours.

    Attributes:
        token: that it asks of everybody; None = it asks for none.
        ca: file with the certificates that its own is signed by; None = the system's, with ``https://``.
        certificate: our file, where it asks for one.
        key: of that certificate; None = in the same file.
    """

    token: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def of_tls(self) -> bool:
        """Whether there is anything that only a line with TLS has a use for."""
        return any((self.ca, self.certificate, self.key))

    def channel(self) -> grpc.ChannelCredentials:
        """For a line with TLS.

        Raises:
            ConfigError: a file can't be read, or isn't what it should be; gRPC would only say that nobody answers.
        """
        if self.key is not None and self.certificate is None:
            raise ConfigError("there is a TLS key and no certificate that it is of; give both files, or neither")
        try:
            ca, key, chain = (
                None if path is None else path.read_bytes()
                for path in (self.ca, self.key or self.certificate, self.certificate)
            )
        except OSError as error:
            raise ConfigError(f"a TLS file can't be read: {error}") from error
        self.context()
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=chain)

    def context(self) -> ssl.SSLContext:
        """The same for Python's own TLS.

        Raises:
            ConfigError: as of ``channel``.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(self.ca)
        except OSError as error:
            raise ConfigError(f"tls_ca {self.ca} holds no certificates ({error}); give a PEM file that does") from error
        try:
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except OSError as error:
            key = f"the key in {self.key}" if self.key else "a key"
            raise ConfigError(
                f"tls_cert {self.certificate} isn't a certificate with {key} ({error}); give tls_cert= and tls_key= as "
                "PEM files that belong together, the key without a password"
            ) from error
        return context


def fault_of(address: str, credentials: Credentials, *, encrypted: bool, timeout_s: float) -> PenstockError | None:
    """What the two sides don't agree on, so that there is no line; None = it isn't that, as far as can be seen.

    gRPC says of all of it that nobody answers. So a connection is made without it, and hung up.

    Args:
        address: ``host:port`` of the coordinator.
        credentials: of ours.
        encrypted: whether the line has TLS.
        timeout_s: for each step.
    """
    context = credentials.context()
    context.set_alpn_protocols([_GRPC])
    if not encrypted:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    host, port = split_address(address)
    try:
        with (
            socket.create_connection((host, port), timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=host) as line,
        ):
            if not encrypted:
                return ConfigError(
                    f"the coordinator at {address} speaks TLS; give its coord_url with https://, and tls_ca=, a file "
                    "with the certificates that its own is signed by"
                )
            return _not_taken(address, credentials) if _hangs_up(line) else None
    except (TimeoutError, ConnectionRefusedError):
        return None
    except OSError as error:
        if not encrypted:
            return _a_page(address, host, port, timeout_s)
        return _disagreement(address, error) if isinstance(error, ssl.SSLError) else None


def _a_page(address: str, host: str, port: int, timeout_s: float) -> ConfigError | None:
    """The coordinator says two addresses when it is ready, with ports side by side."""
    page = HTTPConnection(host, port, timeout=timeout_s)
    try:
        page.request("GET", "/health")
        answer = page.getresponse()
        if answer.status != HTTPStatus.OK or answer.read(16).strip() != b"ok":
            return None  # as of a gateway, whose coordinator may come yet
    except (OSError, HTTPException):
        return None
    finally:
        page.close()
    return ConfigError(
        f"what answers at {address} is a coordinator's page; give coord_url the address at which that coordinator says "
        "it is ready"
    )


def _hangs_up(line: ssl.SSLSocket) -> bool:
    """Whether the other side ends it without a word, which a gRPC server always has."""
    try:
        return not line.recv(1)
    except TimeoutError:
        return False
    except (ssl.SSLError, ConnectionResetError):
        return True


def _disagreement(address: str, error: ssl.SSLError) -> ConfigError | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigError(
            f"the certificate of the coordinator at {address} can't be trusted: {error.verify_message.rstrip('.')}. "
            "Give tls_ca=, a file with the certificates that it is signed by, and in coord_url a name that it is for"
        )
    if error.reason == "WRONG_VERSION_NUMBER":
        return ConfigError(
            f"what answers at {address} speaks no TLS; give its coord_url with http:// and without tls_ca= and the "
            "like, or start that coordinator with --tls-cert"
        )
    return None


def _not_taken(address: str, credentials: Credentials) -> CoordinatorRefused:
    what = "nodes without a certificate" if credentials.certificate is None else f"tls_cert {credentials.certificate}"
    return CoordinatorRefused(
        f"the coordinator at {address} doesn't take {what}: it hung up when it had seen who we are. Give tls_cert= and "
        "tls_key=, a certificate that its --tls-client-ca has signed",
        code="UNAUTHENTICATED",
    )
