"""Decoding with a draft: a small model proposes tokens, the target verifies them in one call.

from trainenv.decoding.contract import Settings, Rule, Drafter
"""
