"""Wrappers around the training environment."""

from trainenv.verification.verify import SpeculativeVerification, Verification

__all__ = ["SpeculativeVerification", "Verification"]
