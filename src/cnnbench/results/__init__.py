"""What a run leaves: raw step times, run.json, statistics computed from the raw times, the KPI text."""
