"""The sorted list on disk that indexing shares."""

from penstock.spool import Entry, Spool

__all__ = ["Entry", "Spool"]
