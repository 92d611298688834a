"""A case's inputs brought into the cache: images, models, environments."""
