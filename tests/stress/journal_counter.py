"""A coordinator that only counts, for as long as it lives: ``python journal_counter.py URL ADDRESS FILE``.

Each number is committed with the term in which that was; the file gets a line for each commit that had returned.
"""

from __future__ import annotations

import sys
import time

from penstock.coordinator.journal import open_journal
from penstock.errors import JournalUnavailable, NotLeader


def main(url: str, address: str, path: str) -> None:
    journal = open_journal(url, job_id="job", address=address, ttl_s=2.0)
    with open(path, "a", buffering=1) as acknowledged:
        while True:
            try:
                term = journal.lead(None)
                number = int(journal.load().get("count", "0"))
                while True:
                    number += 1
                    journal.commit({"count": str(number), f"term of {number}": str(term)})
                    acknowledged.write(f"{number} {term}\n")
                    time.sleep(0.002)
            except (NotLeader, JournalUnavailable):
                continue


if __name__ == "__main__":
    main(*sys.argv[1:])
