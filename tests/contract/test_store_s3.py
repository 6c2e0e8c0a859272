from __future__ import annotations

import pytest

from penstock.store import Store, open_store
from penstock.testing.store import StoreContract


@pytest.mark.s3
class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, s3_root: str) -> Store:
        return open_store(s3_root)
