"""What everything stands on: errors and exit codes, progress, signals, the cache, where the checkout is."""
