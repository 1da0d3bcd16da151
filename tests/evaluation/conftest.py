"""Responses of the family's RLHF model, sampled once."""

from tests.fitting.conftest import distilled

__all__ = ["distilled"]
