"""Benchmark CNN inference on one machine so that every printed number can be trusted."""
