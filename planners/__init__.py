"""Planners: each ranks candidate interventions for a run, through one contract."""
