"""Run a module of this package with any Python, which sees its own environment's packages and this one, no others.

`python .../start.py MODULE ARGUMENT...` does what `python -m MODULE ARGUMENT...` does, except that this package need
not be installed there, and that neither the current directory nor, with Python's option -I, PYTHONPATH, PYTHONHOME or a
user's own site-packages can put other packages in front. Standard library only: any environment's Python runs this.
"""

import sys
from pathlib import Path

START = str(Path(__file__).absolute())
"""This file, to be run as a script."""

PLACES = ("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE")
"""Environment variables by which a Python would find other packages than its environment's."""

if __name__ == "__main__":
    here = Path(START).parent  # where a Python without -I looks first
    sys.path = [str(here.parents[1]), *(place for place in sys.path if place != str(here))]
    import runpy

    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
