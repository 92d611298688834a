"""Say where this program's own files are: the sources, and the repository that they are part of."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
"""The package's directory; the names of its sources count from there."""

SOURCES = PACKAGE.parent
"""What is to be on a Python's path for this package to be found."""

REPOSITORY = SOURCES.parent
"""The checkout (an image has the same layout): lock files, workloads, the default build directory."""
