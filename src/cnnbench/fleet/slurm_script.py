"""Write what Slurm's tasks run: the script of an array of batches, and what fetches what a node of its own has kept."""

import shlex
from collections.abc import Sequence

from cnnbench.fleet.batch import BatchFile
from cnnbench.fleet.folder import BATCH, ENDED, LOG, NODE, NOW

NO_FOLDER = 66
"""The exit code of a task that finds no folder on its node (EX_NOINPUT of sysexits.h)."""

LARGEST_BYTES = 2**20
"""How long a script may be: a quarter of what Slurm takes where it is not told otherwise (max_script_size)."""

_SCRIPT = """\
#!/bin/bash
# What Slurm has bound this to is undone: each case pins its own instances.
taskset --cpu-list --pid "0-$(($(getconf _NPROCESSORS_CONF) - 1))" $$ >/dev/null
batches=({batches})
directory={folder}/batches/"${{batches[SLURM_ARRAY_TASK_ID]}}"
{bring}cd "$directory" || exit {no_folder}
export CNNBENCH_NODE="$SLURMD_NODENAME"
((${{SLURM_RESTART_COUNT:-0}} == 0)) || rm -f {ended} # of the time before it was requeued
exec {command} <{batch} >>{log} 2>&1
"""

_BRING = """\
mkdir -p "$directory" || exit {no_folder}
case $SLURM_ARRAY_TASK_ID in
{cases}esac >"$directory/{batch}"
"""

_CASE = """\
{index}) cat <<'END-OF-BATCH'
{text}
END-OF-BATCH
;;
"""

_FETCH = """\
cd {folder} || exit {no_folder}
set --
for place in {places}; do [ ! -d "results/$place" ] || set -- "$@" -C {folder}/results "$place"; done
for name in {names}; do [ ! -e "batches/{id}/$name" ] || set -- "$@" -C {folder}/batches "{id}/$name"; done
[ $# -eq 0 ] || tar -cf - "$@"
"""


def array_script(batches: Sequence[BatchFile], folder: str, command: Sequence[str], *, shared: bool) -> str:
    """Return the script of an array whose tasks each run one batch by a command that reads it from standard input.

    `folder`: the fleet's on the nodes; where it is not shared, the script itself has the batches.
    """
    bring = "" if shared else _BRING.format(cases="".join(map(_case, range(len(batches)), batches)), **_names())
    return _SCRIPT.format(
        batches=" ".join(batch.id for batch in batches),
        folder=shlex.quote(folder),
        bring=bring,
        command=shlex.join(command),
        **_names(),
    )


def script_bytes(batch: BatchFile) -> int:
    """Return by about how much a batch makes a script longer that has it in itself."""
    return len(_case(0, batch).encode()) + len(batch.id) + 10


def fetch_script(batch: BatchFile, folder: str, places: Sequence[str]) -> str:
    """Return what writes a tar of the runs at these places below results/, and of a batch's own files, on a node."""
    names = " ".join((NODE, NOW, ENDED, LOG))
    return _FETCH.format(folder=shlex.quote(folder), places=shlex.join(places), names=names, id=batch.id, **_names())


def _case(index: int, batch: BatchFile) -> str:
    return _CASE.format(index=index, text=batch.model_dump_json())


def _names() -> dict[str, object]:
    return {"no_folder": NO_FOLDER, "ended": ENDED, "batch": BATCH, "log": LOG}
