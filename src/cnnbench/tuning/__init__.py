"""Sweeps for best-known settings."""
