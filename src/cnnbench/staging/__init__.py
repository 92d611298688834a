"""Bring models and datasets into the cache, verified; import from the modules (the engines lack some dependencies)."""
