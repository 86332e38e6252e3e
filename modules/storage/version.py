"""The one place that states the version of the distribution; the build reads it by path."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
