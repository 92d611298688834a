"""One worker process: what it is told, the control block that it shares, the timed loop."""
