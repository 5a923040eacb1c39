"""What watches a run: telemetry, the probe, the hypergradient and the uncertainty index."""

from trainenv.monitor.uncertainty import UncertaintyIndex

__all__ = ["UncertaintyIndex"]
