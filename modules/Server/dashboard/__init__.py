"""The dashboard: server-rendered pages for people; see `pages`."""

from __future__ import annotations

from fastapi import FastAPI

__all__ = ["install"]


def install(app: FastAPI) -> None:
    """Add the dashboard to `app`."""
