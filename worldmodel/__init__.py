"""The world model of training dynamics: forecasts what an intervention does to a run."""
