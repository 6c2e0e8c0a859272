from __future__ import annotations

from pathlib import Path

import pytest

from penstock.store import Store, open_store
from penstock.testing.store import StoreContract


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "root"))
