"""Let `python -m cnnbench` be the command line."""

import sys

from cnnbench.cli.main import main

sys.exit(main())
