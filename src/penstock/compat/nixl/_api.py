"""What NIXL has in ``nixl._api``, from where many programs import it: all that the package itself has."""

from __future__ import annotations

from penstock.compat.nixl import *  # noqa: F403
from penstock.compat.nixl import __all__  # noqa: F401
