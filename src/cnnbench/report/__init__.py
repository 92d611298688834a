"""Turn results into tables."""
