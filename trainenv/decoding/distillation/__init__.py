"""Drafts that are distilled from a target: a student of few blocks learns its distributions."""

from trainenv.decoding.distillation.distill import SHARD, Distillation, Distilled, distill
from trainenv.decoding.distillation.student import student_of

__all__ = ["SHARD", "Distillation", "Distilled", "distill", "student_of"]
