"""Serve networks: Triton Server with the project's own engines in it, what asks it, and how that is measured."""
