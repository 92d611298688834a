"""Build and rewrite networks."""
