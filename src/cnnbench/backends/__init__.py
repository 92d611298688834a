"""Engines behind one small interface: load, infer, close, describe."""
