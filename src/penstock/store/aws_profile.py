"""Keys from the file that ``aws configure`` writes."""

from __future__ import annotations

import configparser
from dataclasses import dataclass, field
from pathlib import Path

from penstock import config
from penstock.errors import ConfigError

__all__ = ["ProfileKeys", "keys_of", "read_keys"]

_EXPORT = 'eval "$(aws configure export-credentials --profile {profile} --format env)"'


@dataclass(frozen=True, slots=True)
class ProfileKeys:
    """The keys of one profile.

    Attributes:
        access_key_id: with ``secret_access_key``, a pair.
        secret_access_key: never shown.
        session_token: of temporary keys; None of others.
        source: which profile in which file.
    """

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(repr=False)
    source: str


def read_keys() -> ProfileKeys | None:
    """The keys of ``AWS_PROFILE``, or of the profile ``default``; None where nobody named a profile and there is none.

    Raises:
        ConfigError: the profile that was named has no keys here, or the file can't be read.
    """
    named = config.setting("AWS_PROFILE")
    path = Path(config.lookup("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile = named.value or "default"
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = keys_of(text, profile, f"profile {profile} in {path}")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:  # whose own text may quote a secret
        raise ConfigError(f"{path} can't be read ({type(error).__name__}); mend it, or set AWS_ACCESS_KEY_ID") from None
    if found is None and named.value is not None:
        raise ConfigError(
            f"{named.source} is {profile!r}, and {path} has no such profile with aws_access_key_id and "
            f"aws_secret_access_key; roles and sign-ons aren't followed: {_EXPORT.format(profile=profile)} sets their "
            f"keys, and without {named.source} the machine's own identity counts"
        )
    return found


def keys_of(text: str, profile: str, source: str) -> ProfileKeys | None:
    """The keys of a profile in a credentials file (pure); None where it has no pair of them.

    Raises:
        configparser.Error: it is no such file.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="", strict=False)
    parser.read_string(text)
    if not parser.has_section(profile):
        return None
    section = parser[profile]
    key_id, secret = (section.get(f"aws_{name}", "").strip() for name in ("access_key_id", "secret_access_key"))
    token = section.get("aws_session_token", "").strip()
    return ProfileKeys(key_id, secret, token or None, source) if key_id and secret else None
