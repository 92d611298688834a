"""Have Inductor's compiler write whole files alone, as Inductor takes a file in its cache for what it should be.

It tells by the name what is in a file; one that a compiler left half written when it was killed fails whatever loads it
afterwards (`file too short`), in this run and in all that follow.
"""

import hashlib
import os
import shlex
import shutil
import tempfile
from pathlib import Path

import torch._inductor.config as inductor

VARIABLE, DEFAULT = "CXX", "g++"
_SCRIPT = """\
#!/bin/sh
# Runs {compiler}, and has what it writes appear under its name only when it is whole.
output= last=
for word; do
    shift
    if [ "$last" = -o ]; then
        output=$word
        word=$output.$$
    fi
    last=$word
    set -- "$@" "$word"
done
[ -n "$output" ] || exec {compiler} "$@"
if {compiler} "$@"; then
    exec mv -f "$output.$$" "$output"
else
    code=$?
    rm -f "$output.$$"
    exit $code
fi
"""


def write_whole_files(cache: Path) -> None:
    """Have this process and those that it starts compile by a script in the cache, which calls the compiler.

    The script has the compiler's name, by which Inductor knows what options it takes, and one place for each compiler,
    as the place is part of what Inductor knows its files by.
    """
    compiler = shutil.which(os.environ.get(VARIABLE) or DEFAULT)
    directory = cache / "compilers"
    if compiler is None or Path(compiler).is_relative_to(directory):  # missing, or so by who has started this
        return
    script = directory / hashlib.sha256(compiler.encode()).hexdigest()[:12] / Path(compiler).name
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=script.parent, delete=False) as file:
            file.write(_SCRIPT.format(compiler=shlex.quote(compiler)))
        Path(file.name).chmod(0o755)
        Path(file.name).replace(script)
    os.environ[VARIABLE] = str(script)
    inductor.cpp.cxx = (None, str(script))
