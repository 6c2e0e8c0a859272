from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeCaps(_message.Message):
    __slots__ = ("max_fetch_concurrency", "max_decode_concurrency", "max_inflight_bytes", "max_ram_bytes")
    MAX_FETCH_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODE_CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_fetch_concurrency: int
    max_decode_concurrency: int
    max_inflight_bytes: int
    max_ram_bytes: int
    def __init__(self, max_fetch_concurrency: _Optional[int] = ..., max_decode_concurrency: _Optional[int] = ..., max_inflight_bytes: _Optional[int] = ..., max_ram_bytes: _Optional[int] = ...) -> None: ...

class NodeStats(_message.Message):
    __slots__ = ("inflight_bytes", "ram_high_water_bytes", "fetch_queue_depth", "decode_queue_depth", "pack_queue_depth")
    INFLIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAM_HIGH_WATER_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCH_QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    DECODE_QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    PACK_QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    inflight_bytes: int
    ram_high_water_bytes: int
    fetch_queue_depth: int
    decode_queue_depth: int
    pack_queue_depth: int
    def __init__(self, inflight_bytes: _Optional[int] = ..., ram_high_water_bytes: _Optional[int] = ..., fetch_queue_depth: _Optional[int] = ..., decode_queue_depth: _Optional[int] = ..., pack_queue_depth: _Optional[int] = ...) -> None: ...

class WorkRange(_message.Message):
    __slots__ = ("start_id", "end_id", "epoch", "seed")
    START_ID_FIELD_NUMBER: _ClassVar[int]
    END_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    start_id: int
    end_id: int
    epoch: int
    seed: int
    def __init__(self, start_id: _Optional[int] = ..., end_id: _Optional[int] = ..., epoch: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "node_id", "range", "cursor", "expires_unix_time_ms", "fence", "ttl_ms")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    node_id: str
    range: WorkRange
    cursor: int
    expires_unix_time_ms: int
    fence: int
    ttl_ms: int
    def __init__(self, lease_id: _Optional[str] = ..., node_id: _Optional[str] = ..., range: _Optional[_Union[WorkRange, _Mapping]] = ..., cursor: _Optional[int] = ..., expires_unix_time_ms: _Optional[int] = ..., fence: _Optional[int] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class RegisterNodeRequest(_message.Message):
    __slots__ = ("job_id", "node_id", "caps", "instance")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CAPS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    node_id: str
    caps: NodeCaps
    instance: str
    def __init__(self, job_id: _Optional[str] = ..., node_id: _Optional[str] = ..., caps: _Optional[_Union[NodeCaps, _Mapping]] = ..., instance: _Optional[str] = ...) -> None: ...

class RegisterNodeResponse(_message.Message):
    __slots__ = ("assigned_rank", "world_size", "manifest_hash", "heartbeat_interval_ms", "lease_ttl_ms", "registered_nodes", "job_ready", "dataset_base", "seed")
    ASSIGNED_RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_HASH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_NODES_FIELD_NUMBER: _ClassVar[int]
    JOB_READY_FIELD_NUMBER: _ClassVar[int]
    DATASET_BASE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    assigned_rank: int
    world_size: int
    manifest_hash: str
    heartbeat_interval_ms: int
    lease_ttl_ms: int
    registered_nodes: int
    job_ready: bool
    dataset_base: str
    seed: int
    def __init__(self, assigned_rank: _Optional[int] = ..., world_size: _Optional[int] = ..., manifest_hash: _Optional[str] = ..., heartbeat_interval_ms: _Optional[int] = ..., lease_ttl_ms: _Optional[int] = ..., registered_nodes: _Optional[int] = ..., job_ready: _Optional[bool] = ..., dataset_base: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("job_id", "node_id", "unix_time_ms", "stats", "instance")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    node_id: str
    unix_time_ms: int
    stats: NodeStats
    instance: str
    def __init__(self, job_id: _Optional[str] = ..., node_id: _Optional[str] = ..., unix_time_ms: _Optional[int] = ..., stats: _Optional[_Union[NodeStats, _Mapping]] = ..., instance: _Optional[str] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RequestLeaseRequest(_message.Message):
    __slots__ = ("job_id", "node_id", "want", "instance", "request")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    node_id: str
    want: int
    instance: str
    request: str
    def __init__(self, job_id: _Optional[str] = ..., node_id: _Optional[str] = ..., want: _Optional[int] = ..., instance: _Optional[str] = ..., request: _Optional[str] = ...) -> None: ...

class RequestLeaseResponse(_message.Message):
    __slots__ = ("leases", "wait_ms", "job_drained")
    LEASES_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    JOB_DRAINED_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    wait_ms: int
    job_drained: bool
    def __init__(self, leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ..., wait_ms: _Optional[int] = ..., job_drained: _Optional[bool] = ...) -> None: ...

class ReportProgressRequest(_message.Message):
    __slots__ = ("job_id", "node_id", "lease_id", "cursor", "delivered_samples", "delivered_bytes", "unix_time_ms", "instance", "fence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    node_id: str
    lease_id: str
    cursor: int
    delivered_samples: int
    delivered_bytes: int
    unix_time_ms: int
    instance: str
    fence: int
    def __init__(self, job_id: _Optional[str] = ..., node_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., cursor: _Optional[int] = ..., delivered_samples: _Optional[int] = ..., delivered_bytes: _Optional[int] = ..., unix_time_ms: _Optional[int] = ..., instance: _Optional[str] = ..., fence: _Optional[int] = ...) -> None: ...

class ReportProgressResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetManifestRequest(_message.Message):
    __slots__ = ("job_id", "manifest_hash")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_HASH_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    manifest_hash: str
    def __init__(self, job_id: _Optional[str] = ..., manifest_hash: _Optional[str] = ...) -> None: ...

class GetManifestResponse(_message.Message):
    __slots__ = ("manifest_bytes", "schema_version")
    MANIFEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    manifest_bytes: bytes
    schema_version: int
    def __init__(self, manifest_bytes: _Optional[bytes] = ..., schema_version: _Optional[int] = ...) -> None: ...

class ManifestChunk(_message.Message):
    __slots__ = ("data", "schema_version")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    schema_version: int
    def __init__(self, data: _Optional[bytes] = ..., schema_version: _Optional[int] = ...) -> None: ...

class LeaveNodeRequest(_message.Message):
    __slots__ = ("job_id", "node_id", "instance")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    node_id: str
    instance: str
    def __init__(self, job_id: _Optional[str] = ..., node_id: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class LeaveNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Saying(_message.Message):
    __slots__ = ("heartbeat", "request", "progress")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    heartbeat: HeartbeatRequest
    request: RequestLeaseRequest
    progress: ReportProgressRequest
    def __init__(self, heartbeat: _Optional[_Union[HeartbeatRequest, _Mapping]] = ..., request: _Optional[_Union[RequestLeaseRequest, _Mapping]] = ..., progress: _Optional[_Union[ReportProgressRequest, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("refused", "reason", "granted")
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    refused: str
    reason: str
    granted: RequestLeaseResponse
    def __init__(self, refused: _Optional[str] = ..., reason: _Optional[str] = ..., granted: _Optional[_Union[RequestLeaseResponse, _Mapping]] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("job_id", "token")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    token: str
    def __init__(self, job_id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class RestoreResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("snapshot",)
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    def __init__(self, snapshot: _Optional[str] = ...) -> None: ...
