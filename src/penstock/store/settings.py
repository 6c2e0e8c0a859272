"""What an object store's client is told, and where each setting came from. Nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass

from penstock import config
from penstock.errors import ConfigError
from penstock.store.aws_profile import read_keys
from penstock.store.retry import RetryPolicy
from penstock.store.urls import StoreUrl

__all__ = ["StoreSetting", "StoreSettings", "read_settings"]

_HTTP_TRIES = 5  # what the seed system does for plain HTTP
_CLIENT_FINDS = "no variable or profile: the client asks for a workload identity, or this machine's metadata service"


@dataclass(frozen=True, slots=True)
class StoreSetting:
    """One setting: its value, where it came from, and whether it must not be shown.

    Attributes:
        name: ``endpoint``, ``region``, ``access_key_id``, …
        value: None when unset.
        source: the environment variable, ``"default"``, or why there is a default.
        secret: the value must not be shown.
    """

    name: str
    value: str | None
    source: str
    secret: bool = False

    @property
    def shown(self) -> str:
        """The value as it may be printed: secrets are masked."""
        if self.value is None:
            return "unset"
        return "*" * 8 if self.secret else self.value

    def __repr__(self) -> str:
        """Without the secret."""
        return f"StoreSetting({self.name}={self.shown} from {self.source})"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Everything that a client for one bucket, container or host is made from.

    Attributes:
        values: the store's own settings, in a fixed order.
        policy: how its requests are tried.
    """

    values: tuple[StoreSetting, ...]
    policy: RetryPolicy

    def value(self, name: str) -> str | None:
        """A setting's value, None when it is unset or not of this kind of store."""
        return next((each.value for each in self.values if each.name == name), None)

    def source(self, name: str) -> str:
        """Where a setting came from."""
        return next((each.source for each in self.values if each.name == name), "default")


def read_settings(url: StoreUrl) -> StoreSettings:
    """Collect the settings for a store from the environment.

    Raises:
        ConfigError: a variable that doesn't parse, half of a pair of keys, or no Azure account.
    """
    readers = {"s3": _s3, "gs": _gcs, "az": _azure}
    reader = readers.get(url.scheme)
    return StoreSettings(reader(url) if reader else (), _policy(url.scheme))


def _policy(scheme: str) -> RetryPolicy:
    usual = RetryPolicy()
    tries = config.positive_int("STORE_RETRIES", _HTTP_TRIES if scheme.startswith("http") else usual.tries)
    timeout_s = config.positive_int("STORE_TIMEOUT_S", int(usual.timeout_s))
    return RetryPolicy(tries=tries, timeout_s=float(timeout_s))


def _s3(url: StoreUrl) -> tuple[StoreSetting, ...]:
    endpoint = _variable("endpoint", "S3_ENDPOINT_URL")
    keys = (
        _variable("access_key_id", "AWS_ACCESS_KEY_ID"),
        _variable("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    )
    _both_or_none(keys, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return (
        endpoint,
        _path_style(url.root, has_endpoint=endpoint.value is not None),
        _variable("region", "AWS_REGION", default="us-east-1"),
        *(_of_profile() if keys[0].value is None else (*keys, _variable("session_token", "AWS_SESSION_TOKEN"))),
    )


def _of_profile() -> tuple[StoreSetting, ...]:
    """The keys of a profile, else none: the client finds its own."""
    found = read_keys()
    names = ("access_key_id", "secret_access_key", "session_token")
    if found is None:
        return tuple(StoreSetting(name, None, _CLIENT_FINDS, secret=True) for name in names)
    values = (found.access_key_id, found.secret_access_key, found.session_token)
    return tuple(
        StoreSetting(name, value, found.source, secret=True) for name, value in zip(names, values, strict=True)
    )


def _path_style(bucket: str, *, has_endpoint: bool) -> StoreSetting:
    asked = config.flag("S3_FORCE_PATH_STYLE")
    if asked is not None:
        return StoreSetting("path_style", _text(asked), config.setting("S3_FORCE_PATH_STYLE").source)
    if has_endpoint:
        return StoreSetting("path_style", "true", "default with an endpoint")
    if "." in bucket:  # the wildcard certificate of AWS covers no further dot
        return StoreSetting("path_style", "true", "default for a bucket name with a dot")
    return StoreSetting("path_style", "false", "default")


def _gcs(_: StoreUrl) -> tuple[StoreSetting, ...]:
    return (_variable("endpoint", "GCS_ENDPOINT_URL"), _variable("credentials", "GCS_CREDENTIALS"))


def _azure(url: StoreUrl) -> tuple[StoreSetting, ...]:
    account = _variable("account_name", "AZURE_STORAGE_ACCOUNT")
    if account.value is None:
        names = " or ".join(config.VARIABLES["AZURE_STORAGE_ACCOUNT"].names)
        raise ConfigError(f"{url} needs the name of the Azure storage account; set {names}")
    key = _variable("account_key", "AZURE_STORAGE_KEY")
    return (_variable("endpoint", "AZURE_ENDPOINT_URL"), account, key)


_SECRETS = {"access_key_id", "secret_access_key", "session_token", "account_key"}
_CREDENTIALS = {"access_key_id", "credentials", "account_key"}


def _variable(name: str, variable: str, default: str | None = None) -> StoreSetting:
    found = config.setting(variable)
    value, source = (default, found.source) if found.value is None else (found.value, found.source)
    if name == "endpoint" and value is not None and not value.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{source} is {value!r}; an endpoint begins with http:// or https://")
    if value is None and name in _CREDENTIALS:
        source = _CLIENT_FINDS
    return StoreSetting(name, value, source, secret=name in _SECRETS)


def _both_or_none(pair: tuple[StoreSetting, StoreSetting], names: tuple[str, str]) -> None:
    given = [each.value is not None for each in pair]
    if any(given) and not all(given):
        there, missing = names if given[0] else names[::-1]
        raise ConfigError(f"{there} is set and {missing} is not; set both or neither")


def _text(flag: bool) -> str:
    return "true" if flag else "false"
