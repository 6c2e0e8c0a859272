"""What the environment says of how etcd is reached."""

from __future__ import annotations

import ssl
from typing import TypedDict

from penstock import config
from penstock.errors import ConfigError

__all__ = ["User", "configured_user"]


class User(TypedDict):
    """Who we are for etcd: what a ``Gateway`` takes."""

    user: str | None
    password: str | None
    tls: ssl.SSLContext | None


def configured_user() -> User:
    """As ``PENSTOCK_ETCD_USER`` and ``_PASSWORD`` say, with the certificates of ``_CA``, ``_CERT`` and ``_KEY``.

    Raises:
        ConfigError: what they name can't be used.
    """
    return User(user=config.lookup("ETCD_USER"), password=config.lookup("ETCD_PASSWORD"), tls=_configured_tls())


def _configured_tls() -> ssl.SSLContext | None:
    """For endpoints that are ``https``; None = nothing is set."""
    authority, certificate, key = (config.lookup(name) for name in ("ETCD_CA", "ETCD_CERT", "ETCD_KEY"))
    if authority is None and certificate is None:
        return None
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"PENSTOCK_ETCD_CA={authority!r}, PENSTOCK_ETCD_CERT={certificate!r}, PENSTOCK_ETCD_KEY={key!r} "
            f"can't be used: {error}; give paths of PEM files"
        ) from error
    return context
