"""Packing: a pile of files becomes tar shards, a manifest and, where there are classes, a list of labels.

::

    <out>/shards/shard-00000.tar ...   plain tar archives, a member for each sample, named by its id
    <out>/_mx8/manifest.tsv            a row for each sample: where its bytes lie, its label, its crc32c
    <out>/_mx8/labels.tsv              the labels, when the files lie under <label>/<file>

The same files pack to the same bytes, on any machine. Packing streams: memory is a constant whatever the
number and size of the files, about 32 MiB of buffers and as much again for sorting the list of files.

The stages, one module each: ``spool`` (a sorted list on disk), ``survey`` (totals, labels), ``plan`` (pure:
what lies where), ``gather`` (fills the shards' bytes ahead of the writer), ``tar``, ``source_*`` and
``sink_*`` (folders and object stores), ``run`` (one pack from beginning to end).
"""

from __future__ import annotations

from penstock.packing.api import pack, pack_dir
from penstock.packing.progress import Progress, ProgressCallback, Stage

__all__ = ["Progress", "ProgressCallback", "Stage", "pack", "pack_dir"]
