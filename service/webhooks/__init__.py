"""Tells who asked for it that a job has ended: signed, to public addresses only, until heard."""

from __future__ import annotations

__all__: list[str] = []
