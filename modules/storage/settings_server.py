"""Settings of the HTTP API and the dashboard (`atlas-storage serve`). Users import from `modules.storage.settings`."""

from __future__ import annotations

from typing import Annotated, List, Optional

from pydantic import BeforeValidator, Field

from .settings_base import Host, Int, Seconds, Section, Text, no_bool
from .settings_urls import is_local_host

__all__ = ["ServerSettings"]

_AnyPort = Annotated[int, BeforeValidator(no_bool), Field(ge=0, le=65535)]
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class ServerSettings(Section):
    """The HTTP API and the dashboard."""

    host: Host = Field(
        "127.0.0.1", description="Address to listen at; anything but loopback is warned about."
    )
    port: _AnyPort = Field(8765, description="TCP port to listen at; 0 = any that is free.")
    allowed_hosts: Optional[Text] = Field(
        None,
        description="Names, with commas between, by which clients may call the server (`Host`); unset: loopback's names "
        "and `server.host`.",
    )
    max_body_bytes: Int = Field(
        17 * 1024 * 1024, ge=1, description="Bytes that the body of a request may have."
    )
    max_requests: Int = Field(
        4096, ge=1, description="Requests under way at the same time; more are refused with 503."
    )
    max_streams: Int = Field(1024, ge=1, description="Event streams open at the same time.")
    request_timeout_seconds: Seconds = Field(30.0, description="Seconds until a request must be answered.")
    shutdown_grace_seconds: Seconds = Field(
        30.0, description="Seconds that requests under way may take at shutdown."
    )
    session_seconds: Seconds = Field(12 * 3600.0, description="Seconds that a login to the dashboard lasts.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_local_host(self.host)

    @property
    def host_names(self) -> List[str]:
        """The names that a `Host` header may have, lower case, without port; `*` allows all."""
        if self.allowed_hosts is not None:
            return [name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip()]
        return list(dict.fromkeys((*_LOOPBACK_NAMES, self.host.lower())))
