"""Validate a platform: all its cases, run until each has a result that counts, against what is expected of it."""
