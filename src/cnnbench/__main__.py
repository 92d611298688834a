"""Let `python -m cnnbench` be the command line, in a Python that sees its own environment's packages and no others."""

import os
import sys

from cnnbench.base.start import START

if not sys.flags.isolated:  # typed by hand: our scripts say -I
    os.execv(sys.executable, [sys.executable, "-I", START, "cnnbench", *sys.argv[1:]])  # noqa: S606 - no shell

from cnnbench.cli.main import main

sys.exit(main())
