"""Makes and keeps the object-store clients of this process: one for each bucket, container or host and its settings."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from penstock.errors import ConfigError
from penstock.store.settings import StoreSettings
from penstock.store.urls import StoreUrl

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Config

__all__ = ["Client", "Clients", "connect"]

Client: TypeAlias = S3Store | GCSStore | AzureStore | HTTPStore

_CONNECT_TIMEOUT_S = 5.0
_NO_TIMEOUT_S = 86_400.0  # a body may take long: each of its pieces has a deadline of its own
_UPLOAD_TIMEOUT_FACTOR = 4  # a part of an upload is larger than anything that is read in one piece
_KEPT_COUNT = 32


@dataclass(frozen=True, slots=True)
class Clients:
    """Two clients for one root.

    Attributes:
        requests: never retries by itself; ``Requester`` does.
        uploads: retries the parts of multipart uploads by itself, as often as the policy says, because the parts
            are in its hands alone.
    """

    requests: Client
    uploads: Client


_kept: OrderedDict[tuple[str, str, str, StoreSettings], Clients] = OrderedDict()
_guard = threading.Lock()


def connect(url: StoreUrl, settings: StoreSettings) -> Clients:
    """The clients for a root, made at the first call; nothing is sent.

    Raises:
        ConfigError: settings that no client can be made from.
    """
    key = (url.scheme, url.root, url.query, settings)
    with _guard:
        if key not in _kept:
            _kept[key] = _make_both(url, settings)
            if len(_kept) > _KEPT_COUNT:
                _kept.popitem(last=False)
        _kept.move_to_end(key)
        return _kept[key]


def _make_both(url: StoreUrl, settings: StoreSettings) -> Clients:
    policy = settings.policy
    once: RetryConfig = {"max_retries": 0}
    repeated: RetryConfig = {
        "max_retries": policy.tries - 1,
        "retry_timeout": timedelta(seconds=_UPLOAD_TIMEOUT_FACTOR * policy.total_s),
        "backoff": {
            "init_backoff": timedelta(seconds=policy.first_delay_s),
            "max_backoff": timedelta(seconds=policy.longest_delay_s),
            "base": 2,
        },
    }
    try:
        return Clients(
            requests=_make(url, settings, _options(url, settings, _NO_TIMEOUT_S), once),
            uploads=_make(url, settings, _options(url, settings, _UPLOAD_TIMEOUT_FACTOR * policy.timeout_s), repeated),
        )
    except Exception as error:  # whatever the client's builder says may quote a secret
        sources = ", ".join(f"{each.name} from {each.source}" for each in settings.values) or "no settings"
        raise ConfigError(
            f"no client can be made for {url} ({type(error).__name__}); check its settings: {sources}"
        ) from None


def _options(url: StoreUrl, settings: StoreSettings, timeout_s: float) -> ClientConfig:
    address = settings.value("endpoint") or url.root
    connect_timeout_s = min(_CONNECT_TIMEOUT_S, settings.policy.timeout_s)
    return {
        "allow_http": address.startswith("http://"),
        "connect_timeout": timedelta(seconds=connect_timeout_s),
        "timeout": timedelta(seconds=timeout_s),
    }


def _make(url: StoreUrl, settings: StoreSettings, options: ClientConfig, retries: RetryConfig) -> Client:
    if url.scheme == "s3":
        return S3Store(url.root, config=_s3_config(url.root, settings), client_options=options, retry_config=retries)
    if url.scheme == "gs":
        return GCSStore(url.root, config=_gcs_config(settings), client_options=options, retry_config=retries)
    if url.scheme == "az":
        return AzureStore(url.root, config=_azure_config(settings), client_options=options, retry_config=retries)
    address = f"{url.root}/?{url.query}" if url.query else url.root
    return HTTPStore(address, client_options=options, retry_config=retries)


def _s3_config(bucket: str, settings: StoreSettings) -> S3Config:
    path_style = settings.value("path_style") == "true"
    config: S3Config = {
        "region": settings.value("region") or "us-east-1",
        "virtual_hosted_style_request": not path_style,
        "disable_bulk_delete": True,  # many S3-compatible servers lack it, and we delete one at a time
    }
    endpoint = settings.value("endpoint")
    if endpoint is not None:
        address = endpoint if path_style else _with_bucket(endpoint, bucket)
        # Both: the client reads AWS_ENDPOINT_URL_S3 by itself and would prefer it to ours.
        config["endpoint"] = config["aws_endpoint_url_s3"] = address
    key_id, secret = settings.value("access_key_id"), settings.value("secret_access_key")
    if key_id is not None and secret is not None:
        config["access_key_id"], config["secret_access_key"] = key_id, secret
    token = settings.value("session_token")
    if token is not None:
        config["session_token"] = token
    return config


def _with_bucket(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _gcs_config(settings: StoreSettings) -> GCSConfig:
    config: GCSConfig = {}
    endpoint, credentials = settings.value("endpoint"), settings.value("credentials")
    if endpoint is not None:
        config["base_url"] = endpoint
        config["skip_signature"] = credentials is None  # emulators know no accounts
    if credentials is not None and settings.source("credentials") == "GOOGLE_APPLICATION_CREDENTIALS":
        config["application_credentials"] = credentials
    elif credentials is not None:
        config["service_account"] = credentials
    return config


def _azure_config(settings: StoreSettings) -> AzureConfig:
    config: AzureConfig = {"account_name": settings.value("account_name") or ""}
    endpoint, key = settings.value("endpoint"), settings.value("account_key")
    if endpoint is not None:
        config["endpoint"] = endpoint
    if key is not None:
        config["account_key"] = key
    return config
