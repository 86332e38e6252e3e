"""The text of a token, and its digest. Pure functions.

    atlas_<tenant>_<secret>      both in base64url without padding, with "." for "_"

The tenant in it says where to look the token up, so that this look-up leads with `tenant_id` as every other does; it gives
no right. The secret is 256 bits from the operating system, so one plain SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import NamedTuple

from modules.access_store.errors import TokenRejectedError
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

__all__ = ["TokenKey", "key_of", "new_token"]

_PREFIX = "atlas"
_SECRET_BYTES = 32
# The longest tenant is 255 bytes; what is longer than this is no token of ours, and is not decoded.
_MAX_LENGTH = 512


class TokenKey(NamedTuple):
    """Where a token's row is: its tenant, and the SHA-256 of the whole text in hexadecimal."""

    tenant_id: str
    digest: str


def new_token(tenant_id: str) -> str:
    """Return the text of a new token of `tenant_id`."""
    return f"{_PREFIX}_{_encode(tenant_id.encode())}_{_encode(secrets.token_bytes(_SECRET_BYTES))}"


def key_of(token: str) -> TokenKey:
    """Return where the row of `token` is.

    Raises:
        TokenRejectedError: it is not of the form of our tokens.
    """
    parts = token.split("_") if len(token) <= _MAX_LENGTH and token.isascii() else []
    if len(parts) != 3 or parts[0] != _PREFIX:
        raise TokenRejectedError("malformed")
    try:
        tenant_id = check_identifier(_decode(parts[1]).decode(), "the tenant of the token")
    except (binascii.Error, UnicodeDecodeError, InvalidValueError):
        raise TokenRejectedError("malformed") from None
    return TokenKey(tenant_id, hashlib.sha256(token.encode()).hexdigest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=").replace("_", ".")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.replace(".", "_") + "=" * (-len(text) % 4))
