"""A coordinator inside of a process that does something else meanwhile."""

from __future__ import annotations

import logging

from packing import pack_random

from penstock.coordinator.state import Terms
from penstock.distributed import coordinator
from waiting import wait_until


def test_why_it_ended_is_said_when_nobody_waits_for_it_any_more(tmp_path, caplog):
    packed = pack_random(tmp_path, 10) / "packed"
    journal, foreign = tmp_path / "journal", tmp_path / "foreign"
    foreign.write_bytes(b"no journal\n")
    with (
        caplog.at_level(logging.ERROR, logger="penstock"),
        coordinator(
            str(packed),
            journal=f"file:{journal}",
            terms=Terms(lease_ttl_s=0.2),
            manifest_store_root=str(tmp_path / "root"),
        ),
    ):
        foreign.rename(journal)
        wait_until(lambda: "damaged" in caplog.text)
    assert "the coordinator in this process ended" in caplog.text
