"""Settings of the outbox. Users import them from `modules.storage.settings`."""

from __future__ import annotations

from pydantic import Field

from .settings_base import Int, NotNegative, Seconds, Section


class OutboxSettings(Section):
    """The outbox of units of work, and its relay."""

    relay: bool = Field(
        True, description="Relay in this process; off: leave it to `atlas-storage relay` or other processes."
    )
    poll_interval_s: Seconds = Field(
        1.0, description="Seconds between two looks for what other processes have staged."
    )
    apply_timeout_s: Seconds = Field(10.0, description="Seconds that one delivery to a target may take.")
    max_attempts: Int = Field(8, ge=1, description="Failures in a row after which a key is parked.")
    concurrency: Int = Field(64, ge=1, description="Deliveries to one target at once.")
    keep_done_s: NotNegative = Field(
        3600.0, description="Seconds until the row of a key that has nothing waiting is removed."
    )
    keep_keys_days: Int = Field(
        30, ge=0, description="Days until the key of a unit of work is forgotten; 0 = keep."
    )
    degraded_lag_s: Seconds = Field(
        60.0, description="Health is degraded when the oldest delivery has waited longer, in seconds."
    )
    degraded_parked: Int = Field(1, ge=1, description="Health is degraded at so many parked keys.")
