"""The front door to the evidence that changes a run: patch, transplant."""

from __future__ import annotations
