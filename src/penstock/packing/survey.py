"""What the listing of a source tells before anything is copied: totals and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from penstock.dataset.labels import LabelMode, label_of, labels_active, number_labels
from penstock.dataset.spool import Entry
from penstock.errors import EmptyDataset, PackError
from penstock.packing.source import shown
from penstock.proof import prove

__all__ = ["Survey"]

_REPORT_ENTRIES = 1 << 14


class Survey:
    """Counts files, bytes and labels as the listing passes by; memory grows with the labels only."""

    def __init__(self, source_url: str) -> None:
        self._source_url = source_url
        self.samples = 0
        self.bytes = 0
        self._labels: set[bytes] = set()
        self._unlabelled: bytes | None = None

    def watch(self, entries: Iterable[Entry], report: Callable[[], None]) -> Iterator[Entry]:
        """Pass entries on, counting them; ``report`` is called every few thousand.

        Raises:
            PackError: a file of zero length.
            EmptyDataset: there was no file at all.
        """
        for entry in entries:
            path, size = entry
            if size <= 0:
                raise PackError(
                    f"{self._source_url}/{shown(path)} has zero length; a sample needs at least one byte: "
                    "remove the file or fill it"
                )
            label = label_of(path)
            if label is None:
                self._unlabelled = path if self._unlabelled is None else min(self._unlabelled, path)
            else:
                self._labels.add(label)
            self.samples += 1
            self.bytes += size
            if self.samples % _REPORT_ENTRIES == 0:
                report()
            yield entry
        if not self.samples:
            raise EmptyDataset(f"{self._source_url} has zero files to pack")

    def labels(self, mode: LabelMode) -> dict[bytes, int] | None:
        """The number of each label, or None when the dataset carries none.

        Raises:
            PackError: the mode is ``imagefolder`` and a file has no label.
        """
        if mode == "auto" and self._labels and self._unlabelled is not None:
            prove("pack_label_mixed_layout", source=self._source_url, unlabelled=shown(self._unlabelled))
        if not labels_active(mode, unlabelled=self._unlabelled, label_count=len(self._labels)):
            return None
        return number_labels(self._labels)
