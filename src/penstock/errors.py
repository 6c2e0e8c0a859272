"""Every error that Penstock raises, in one tree.

::

    PenstockError(RuntimeError)
     ├─ ConfigError(ValueError)          an argument or a combination of them that can't work
     │   └─ LinkError                    a dataset link that doesn't parse
     ├─ NoSuchSample(IndexError)         a sample was asked for by a number that none has
     ├─ ClosedError                      you closed it, then used it
     ├─ DeadlineExceeded(TimeoutError)   a wait reached its deadline
     ├─ BudgetError
     │   ├─ UnitTooLarge                 one unit of work is larger than the whole budget
     │   ├─ BudgetHeld                   the consumer holds what the next batch needs
     │   └─ RssExceeded                  the process outgrew the guard that its owner set
     ├─ StoreError                       where bytes live
     │   ├─ ObjectNotFound(FileNotFoundError)
     │   ├─ AccessDenied(PermissionError)
     │   ├─ PreconditionFailed           somebody else wrote first
     │   ├─ StoreFull                    no room left where we write
     │   └─ StoreUnavailable             the store didn't answer, or not with what was asked for
     ├─ DataError                        bytes that aren't what they should be
     │   ├─ ManifestError(ValueError)    a manifest or labels file that doesn't parse, or lies
     │   ├─ SampleError                  one sample's own fault: what ``on_error`` is about
     │   │   ├─ SampleChanged            a file grew or shrank after it was sized
     │   │   ├─ SampleMissing(ObjectNotFound)   the file or object that is the sample isn't there
     │   │   ├─ ShardCorrupt             a sample's bytes don't match their crc32c
     │   │   ├─ DecodeError              a sample that its decoder refuses
     │   │   └─ TransformError           a sample, or a batch, that the user's own function failed on
     │   │       └─ WorkerDied           the process that ran it ended
     │   └─ TooManyFaults                more faulty samples than ``max_errors`` allows
     ├─ ResolveError                     a link that can't be turned into a manifest
     │   ├─ EmptyDataset                 nothing to index or to pack
     │   └─ ManifestNotFound(LookupError)
     ├─ PackError                        input that can't be packed
     ├─ TransferError                    moving memory between processes and hosts
     │   ├─ NotRegistered(LookupError)   a descriptor that lies outside of registered memory
     │   ├─ StaleDescriptor              the memory was deregistered, or renewed, since it was described
     │   ├─ TransferActive               posted again, or let go of, while it is still running
     │   ├─ UnknownPeer(LookupError)     no metadata of an agent of this name is loaded
     │   ├─ PeerUnreachable              no connection to the peer could be made
     │   ├─ PeerRefused                  the peer doesn't want us: its secret, version or limits differ
     │   ├─ PeerLost                     the peer ended, or its line was cut, while we were connected
     │   ├─ MetadataError(ValueError)    a blob or message that doesn't parse
     │   └─ TransportUnavailable         UCX, or the transport that was required, isn't there
     ├─ CoordinatorError                 sharing a job over nodes
     │   ├─ CoordinatorUnreachable       nobody who leads answers
     │   ├─ CoordinatorRefused           it did, and doesn't want that: ``code`` is its status
     │   ├─ NotLeader                    another coordinator leads the job, or may by now
     │   ├─ JournalUnavailable           what a coordinator keeps its state in doesn't take or give it
     │   └─ LeaseLost                    samples were somebody else's by the time that they were to be done
     └─ ResumeError(ValueError)          a state that a loader can't go on from

A message says what was given, what was allowed and what to do. Everything is a ``RuntimeError``, because the
four systems whose programs run on Penstock raise that; the second base, where there is one, is the builtin that
a caller would expect. ``retryable`` says whether the same call may succeed later; retry code asks it alone.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessDenied",
    "BudgetError",
    "BudgetHeld",
    "ClosedError",
    "ConfigError",
    "CoordinatorError",
    "CoordinatorRefused",
    "CoordinatorUnreachable",
    "DataError",
    "DeadlineExceeded",
    "DecodeError",
    "EmptyDataset",
    "JournalUnavailable",
    "LeaseLost",
    "LinkError",
    "ManifestError",
    "ManifestNotFound",
    "MetadataError",
    "NoSuchSample",
    "NotLeader",
    "NotRegistered",
    "ObjectNotFound",
    "PackError",
    "PeerLost",
    "PeerRefused",
    "PeerUnreachable",
    "PenstockError",
    "PreconditionFailed",
    "ResolveError",
    "ResumeError",
    "RssExceeded",
    "SampleChanged",
    "SampleError",
    "SampleMissing",
    "ShardCorrupt",
    "StaleDescriptor",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "TooManyFaults",
    "TransferActive",
    "TransferError",
    "TransformError",
    "TransportUnavailable",
    "UnitTooLarge",
    "UnknownPeer",
    "WorkerDied",
]


class PenstockError(RuntimeError):
    """The root of the tree."""

    retryable: ClassVar[bool] = False


class ConfigError(PenstockError, ValueError):
    """An argument, or a combination of arguments, that can't work."""


class LinkError(ConfigError):
    """A dataset link that doesn't parse."""


class NoSuchSample(PenstockError, IndexError):
    """A sample was asked for by a number that none has."""


class ClosedError(PenstockError):
    """The object was closed by its owner."""


class DeadlineExceeded(PenstockError, TimeoutError):
    """A wait reached its deadline; the message says what was waited for and for how long."""

    retryable = True


class BudgetError(PenstockError):
    """Something about the memory budget."""


class UnitTooLarge(BudgetError):
    """One unit of work needs more than the whole budget; it can never be admitted."""

    def __init__(self, message: str, *, needed_bytes: int = 0, total_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.total_bytes = total_bytes


class BudgetHeld(BudgetError):
    """The consumer itself holds so much that the next batch can never be admitted.

    Let go of batches, tensors or views that came from this loader and call ``next()`` again: nothing is lost.
    """

    retryable = True

    def __init__(self, message: str, *, held_bytes: int, needed_bytes: int, total_bytes: int) -> None:
        super().__init__(message)
        self.held_bytes = held_bytes
        self.needed_bytes = needed_bytes
        self.total_bytes = total_bytes


class RssExceeded(BudgetError):
    """The process is larger than ``max_process_rss_bytes``, or its size can't be read."""


class StoreError(PenstockError):
    """A store (folder, S3, GCS, Azure, HTTP) failed."""


class ObjectNotFound(StoreError, FileNotFoundError):
    """The object or file isn't there."""


class AccessDenied(StoreError, PermissionError):
    """The store refuses these credentials, or the file system this user."""


class PreconditionFailed(StoreError):
    """A put-if-absent or compare-and-swap lost against another writer."""


class StoreFull(StoreError):
    """No room is left where bytes are written."""


class StoreUnavailable(StoreError):
    """The store didn't answer in time, answered with a server error, or with fewer bytes than asked for."""

    retryable = True


class DataError(PenstockError):
    """Bytes that aren't what they should be."""


class ManifestError(DataError, ValueError):
    """A manifest or a labels file that doesn't parse, contradicts itself, or doesn't match its hash."""


class SampleError(DataError):
    """One sample's own fault, which says nothing about the others: ``on_error`` decides what becomes of it.

    Attributes:
        sample_id: its row in the manifest; -1 = no sample of a manifest.
        location: the shard or file that it lies in, in full; empty = unknown.
        offset: of its first byte in there; -1 = it is the whole object, or unknown.
        key: its name: of its member in a tar, of its file below the dataset's base. None = unknown; only looked up for
            samples that ``on_error`` may leave out.
    """

    def __init__(self, message: str, *, sample_id: int = -1, location: str = "", offset: int = -1) -> None:
        super().__init__(message)
        self.sample_id = sample_id
        self.location = location
        self.offset = offset
        self.key: str | None = None


class SampleChanged(SampleError):
    """A file is longer or shorter than when it was sized."""


class SampleMissing(SampleError, ObjectNotFound):
    """The file or object that is the sample as a whole isn't there."""


class ShardCorrupt(SampleError):
    """A sample's bytes don't match the crc32c in the manifest."""


class DecodeError(SampleError):
    """A sample that its decoder refuses."""


class TransformError(SampleError):
    """The user's transform or collate raised, or returned what can't be handed out.

    Attributes:
        details: the traceback where it happened, which may be another process; empty where there is none.
    """

    def __init__(
        self, message: str, *, sample_id: int = -1, location: str = "", offset: int = -1, details: str = ""
    ) -> None:
        super().__init__(message, sample_id=sample_id, location=location, offset=offset)
        self.details = details


class WorkerDied(TransformError):
    """A worker process ended (killed, out of memory, crashed) and is not to be replaced, or not again."""


class TooManyFaults(DataError):
    """More samples were faulty than ``max_errors`` allows; its cause is the last one's error.

    Attributes:
        count: faulty samples so far, with those of the batch that wasn't handed out.
        max_errors: how many were allowed.
    """

    def __init__(self, message: str, *, count: int = 0, max_errors: int = 0) -> None:
        super().__init__(message)
        self.count = count
        self.max_errors = max_errors


class ResolveError(PenstockError):
    """A dataset link that can't be turned into a manifest."""


class EmptyDataset(ResolveError):
    """Nothing was found to index or to pack."""


class ManifestNotFound(ResolveError, LookupError):
    """The manifest store has no manifest with this hash."""


class ResumeError(PenstockError, ValueError):
    """A state that a loader can't go on from; the message says why."""


class PackError(PenstockError):
    """Input that can't be packed, or an output that can't be written."""


class TransferError(PenstockError):
    """Moving memory between processes and hosts failed."""


class NotRegistered(TransferError, LookupError):
    """A descriptor lies outside of the memory that its agent registered, or that we know of."""


class StaleDescriptor(TransferError):
    """The memory was deregistered, or renewed, since it was described: what lies there now is something else."""


class TransferActive(TransferError):
    """The transfer is still running, so it can't be posted again or let go of yet."""

    retryable = True


class UnknownPeer(TransferError, LookupError):
    """No metadata of an agent of this name is loaded, or it was removed."""


class PeerUnreachable(TransferError):
    """No connection to the peer could be made in time."""

    retryable = True


class PeerRefused(TransferError):
    """The peer answered and doesn't want us: the secret, the version or a limit differs."""


class PeerLost(TransferError):
    """The peer ended, or its line was cut, while we were connected; load its new metadata to go on."""


class MetadataError(TransferError, ValueError):
    """A blob or a message from a peer that doesn't parse, or contradicts itself."""


class TransportUnavailable(TransferError):
    """UCX isn't there, or it doesn't offer the transport that was required."""


class CoordinatorError(PenstockError):
    """A job can't be shared over nodes as it was asked."""


class CoordinatorUnreachable(CoordinatorError):
    """No coordinator that leads answers."""

    retryable = True


class CoordinatorRefused(CoordinatorError):
    """The coordinator said no.

    Attributes:
        code: the name of the gRPC status that it said it with, e.g. ``FAILED_PRECONDITION``.
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class NotLeader(CoordinatorError):
    """This coordinator doesn't lead the job, or not any more; ask the one that does."""

    retryable = True


class JournalUnavailable(CoordinatorError):
    """What a coordinator keeps its state in can't be reached, or takes nothing more: etcd is down, the disk is full."""

    retryable = True


class LeaseLost(CoordinatorError):
    """Samples that are somebody else's now: what was done with them doesn't count."""
