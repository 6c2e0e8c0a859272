"""The page of a coordinator, where it is wanted."""

from __future__ import annotations

import logging
import ssl
from typing import Final

from penstock.coordinator.access import Access
from penstock.coordinator.page.server import PageServer
from penstock.coordinator.watch import Watch
from penstock.errors import ConfigError
from penstock.net import LOOPBACK, split_address

__all__ = ["open_page"]

_log = logging.getLogger("penstock.coordinator")
_OFF: Final = ("", "off")


async def open_page(watch: Watch, page_addr: str | None, grpc_addr: str, access: Access) -> PageServer | None:
    """Serve it.

    Args:
        watch: what it shows.
        page_addr: host:port; "" or "off" = not at all; None = on loopback, on the port after gRPC's, or on any free one
            where that is taken.
        grpc_addr: host:port where nodes are answered.
        access: what whoever looks has to show: the same as nodes.

    Raises:
        ConfigError: it can't be served where it was asked for.
    """
    if page_addr in _OFF:
        return None
    token, tls = access.token or None, _tls(access)
    if page_addr is not None:
        host, port = split_address(page_addr, name="page_addr")
        return await PageServer.start(watch, host, port, token=token, tls=tls)
    wanted = (split_address(grpc_addr)[1] + 1) % (1 << 16)
    try:
        return await PageServer.start(watch, LOOPBACK, wanted, token=token, tls=tls)
    except ConfigError:
        _log.info("port %d is taken, so the page is served on another one", wanted)
        return await PageServer.start(watch, LOOPBACK, 0, token=token, tls=tls)


def _tls(access: Access) -> ssl.SSLContext | None:
    if access.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(access.tls_cert, access.tls_key)
        if access.tls_client_ca is not None:
            context.load_verify_locations(access.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"the page can't use the coordinator's certificate files: {error}") from error
    return context
