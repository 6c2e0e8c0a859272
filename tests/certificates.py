"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificates(folder: Path) -> Path:
    """Two authorities, ``ca`` and ``other``, and what they vouch for: ``NAME.pem`` with ``NAME.key``.

    ``server``, ``client`` and ``elsewhere`` (which isn't for loopback) are of the first, ``stranger`` is of the other.
    """
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def make(name: str, *options: str) -> None:
        command = [*new, "-x509", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *options]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    make("ca")
    make("other")
    here, far = "DNS:localhost,IP:127.0.0.1", "DNS:elsewhere.test"
    for name, by, who in (
        ("server", "ca", here),
        ("client", "ca", here),
        ("elsewhere", "ca", far),
        ("stranger", "other", here),
    ):
        signed = ("-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-addext", "basicConstraints=CA:FALSE")
        make(name, *signed, "-addext", f"subjectAltName={who}")
    return folder
