"""Wrappers around the training environment."""

from trainenv.wrappers.verification import SpeculativeVerification, Verification

__all__ = ["SpeculativeVerification", "Verification"]
