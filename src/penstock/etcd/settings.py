"""What the environment says of how etcd is reached."""

from __future__ import annotations

import ssl

from penstock import config
from penstock.errors import ConfigError

__all__ = ["configured_tls"]


def configured_tls() -> ssl.SSLContext | None:
    """For endpoints that are ``https``, of ``PENSTOCK_ETCD_CA``, ``_CERT`` and ``_KEY``; None = nothing is set.

    Raises:
        ConfigError: what they name can't be used.
    """
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
