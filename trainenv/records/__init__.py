"""What a run leaves behind: telemetry, events, validation losses, snapshots and pictures."""
