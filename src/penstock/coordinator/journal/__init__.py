"""Where a coordinator keeps what it decided: in memory, in a file, or in etcd."""

from penstock.coordinator.journal.base import Journal
from penstock.coordinator.journal.etcd import EtcdJournal
from penstock.coordinator.journal.file import FileJournal
from penstock.coordinator.journal.memory import MemoryJournal, MemoryRecords
from penstock.coordinator.journal.opening import open_journal

__all__ = ["EtcdJournal", "FileJournal", "Journal", "MemoryJournal", "MemoryRecords", "open_journal"]
