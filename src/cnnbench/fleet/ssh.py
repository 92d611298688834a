"""The launcher for machines without a scheduler: plain OpenSSH, and a process on each that outlives a connection."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, PositiveFloat

from cnnbench.base.disk import explain_refusals
from cnnbench.base.errors import CnnbenchError, UsageError
from cnnbench.fleet.batch import BatchFile, Ended, Node, Now
from cnnbench.fleet.folder import BATCH, ENDED, FLEET, LOG, NODE, NOW, REMEDY, FleetFolder, write_file
from cnnbench.fleet.launcher import Batch, JobState, UnavailableError, node_command
from cnnbench.fleet.spec import Pool, Runs, Strict, read_options
from cnnbench.fleet.stageout import install_archive, missing_places

AT_ONCE = 16
"""To how many machines there is a connection at the same time, at the most."""
NOBODY = "0"
"""What a job is called whose process is not known: its machine did not answer when it was to be started."""
ANSWER_S = 120.0
CANCEL_S = 90.0
_FILES: dict[str, type[BaseModel]] = {NODE: Node, NOW: Now, ENDED: Ended}

_START = """\
set -e
mkdir -p {directory}
cd {directory}
if [ ! -e batch.json ]; then
cat >.batch.json.$$ <<'END-OF-BATCH'
{text}
END-OF-BATCH
mv .batch.json.$$ batch.json
fi
nohup setsid {command} >>log 2>&1 </dev/null &
echo "$!"
"""

_FIND = """\
cd {directory} 2>/dev/null || {{ echo absent; exit 0; }}
pids="{pid} $(sed -n 's/.*"pid":\\([0-9]*\\).*/\\1/p' node.json 2>/dev/null)"
alive=dead
for pid in $pids; do grep -qs '/{batch}/' "/proc/$pid/cmdline" && alive=alive; done
[ ! -e lock ] || flock -n lock true || alive=alive
"""

_POLL = (
    _FIND
    + """\
echo "$alive"
for name in node.json now.json ended.json; do [ ! -e $name ] || {{ printf '%s ' $name; cat $name; echo; }}; done
printf 'log '; tail -n 1 log 2>/dev/null || echo
"""
)

_STOP = (
    _FIND
    + """\
for pid in $pids; do grep -qs '/{batch}/' "/proc/$pid/cmdline" && kill -TERM "$pid"; done
for _ in $(seq {seconds}); do
    still=
    for pid in $pids; do grep -qs '/{batch}/' "/proc/$pid/cmdline" && still=yes; done
    [ -n "$still" ] || exit 0
    sleep 1
done
for pid in $pids; do grep -qs '/{batch}/' "/proc/$pid/cmdline" && kill -KILL "$pid"; done
exit 0
"""
)

_CHECK = """\
echo "clock $(date +%s.%N)"
for tool in setsid nohup flock tar sed grep; do command -v "$tool" >/dev/null || echo "lacks $tool"; done
[ -x {python} ] || echo "lacks {python}"
mkdir -p {folder} 2>&1 && [ -w {folder} ] || echo "unwritable {folder}"
printf 'fleet '; cat {folder}/{fleet} 2>/dev/null || true
echo
"""


class SshOptions(Strict):
    """Which machines, and how they are reached.

    `hosts`: as ssh knows them, one machine each. `config`: a file in place of the user's own ~/.ssh/config. `poll_s`:
    how often a machine is asked how far it is. `lost_after_s`: how long a machine may not answer before its runs count
    as lost. `connect_s`: how long a connection may take.
    """

    hosts: Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@:%-]*$")]], Field(min_length=1)]
    config: str = ""
    poll_s: PositiveFloat = 10.0
    lost_after_s: PositiveFloat = 600.0
    connect_s: Annotated[int, Field(ge=1, le=600)] = 10


class SshLauncher:
    """Runs batches on the hosts of a list, each host being one slot of the pool."""

    Options: ClassVar[type[BaseModel]] = SshOptions
    chooses_nodes: ClassVar[bool] = False

    def __init__(self, pool: Pool, folder: FleetFolder) -> None:
        self._pool, self._folder = pool, folder
        self._options = read_options(SshOptions, pool)
        self._remote = pool.folder or str(folder.path)
        self._slots: dict[str, int] = {}
        self._seen: dict[str, tuple[float, JobState]] = {}
        self._silent_since: dict[str, float] = {}
        self._refusals: dict[str, str] = {}

    @property
    def machines(self) -> int:
        """The hosts, or as many of them as the pool asks for."""
        hosts, asked = self._options.hosts, self._pool.machines
        if twice := [host for number, host in enumerate(hosts) if host in hosts[:number]]:
            raise UsageError(f"pool {self._pool.name}: {twice[0]} is among its hosts twice; name each machine once")
        if asked is not None and asked > len(hosts):
            raise UsageError(
                f"pool {self._pool.name}: machines is {asked}, and there are {len(hosts)} hosts ({', '.join(hosts)}); "
                "name more, or ask for fewer"
            )
        if self._pool.constraint:
            raise UsageError(f"pool {self._pool.name}: constraint has no meaning for launcher ssh; choose by `hosts`")
        return asked or len(hosts)

    def check(self, run: Runs) -> None:
        """Ask every host for what a batch needs there, and what time it is."""
        hosts = self._options.hosts[: self.machines]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = [one for one in pool.map(lambda host: self._check_host(host, run.clock_skew_s), hosts) if one[0]]
        told = "\n".join(f"pool {self._pool.name}: {text}" for text, _ in found)
        if any(answers for _, answers in found):
            raise UsageError(told)
        if found:
            raise UnavailableError(told)

    def _check_host(self, host: str, most_skew_s: float) -> tuple[str, bool]:
        """Return what is wrong with a host, empty where nothing is, and whether it answers."""
        try:
            return self._examine(host, most_skew_s), True
        except UnavailableError as error:
            return str(error), False

    def _examine(self, host: str, most_skew_s: float) -> str:
        python = node_command(self._pool, sys.executable, self._remote)[0]
        places = {"python": shlex.quote(python), "folder": shlex.quote(self._remote), "fleet": FLEET}
        before_s = time.time()
        try:
            answer = self._ask(host, _CHECK.format(**places))
        except UnavailableError:
            raise
        except CnnbenchError as error:
            return str(error)
        after_s, lines = time.time(), answer.splitlines()
        problems = [line for line in lines if line.startswith(("lacks ", "unwritable "))]
        if problems:
            return f"{host}: {'; '.join(problems)}"
        clock_s = next((float(line.split()[1]) for line in lines if line.startswith("clock ")), None)
        if clock_s is None:
            return f"{host}: did not tell its time: {answer[:200]}"
        skew_s = max(before_s - clock_s, clock_s - after_s, 0.0)
        if skew_s > most_skew_s:
            side = "behind" if clock_s < before_s else "ahead of"
            return (
                f"{host}: its clock is {skew_s:.1f} s {side} this machine's (clock_skew_s is {most_skew_s:g}): "
                "have both kept by one time server"
            )
        if self._pool.shared:
            own = (self._folder.path / FLEET).read_text(encoding="utf-8")
            if f"fleet {own.strip()}" not in lines:
                return (
                    f"{host}: {self._remote} is not this fleet's folder there; mount the same one, or give the pool "
                    "`shared: false` and a `folder`"
                )
        return ""

    def submit(self, batches: Sequence[Batch]) -> dict[str, str]:
        """Start a process for each batch; a host that does not answer is asked again by `poll`."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(pool.map(self._start, batches))

    def _start(self, batch: Batch) -> tuple[str, str]:
        directory = f"{self._remote}/batches/{batch.id}"
        command = node_command(self._pool, sys.executable, self._remote)
        command[command.index("-")] = f"{directory}/{BATCH}"
        script = _START.format(
            directory=shlex.quote(directory), text=batch.file.model_dump_json(), command=shlex.join(command)
        )
        self._slots[batch.id] = batch.slot
        try:
            _, _, last = self._ask(self._host(batch.id), script).strip().rpartition("\n")
        except CnnbenchError as error:  # whether it was started all the same, the first look will tell
            self._refusals[batch.id] = str(error)
            return batch.id, NOBODY
        return batch.id, last if last.isdecimal() else NOBODY

    def poll(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """Ask the hosts that have not been asked for a while."""
        now_s = time.monotonic()
        due = [one for one in jobs if one not in self._seen or now_s - self._seen[one][0] >= self._options.poll_s]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for batch, state in zip(due, pool.map(lambda one: self._look(one, jobs[one]), due), strict=True):
                self._seen[batch] = (time.monotonic(), state)
        return {batch: self._seen[batch][1] for batch in jobs}

    def _look(self, batch: str, pid: str) -> JobState:
        host = self._host(batch)
        script = _POLL.format(directory=shlex.quote(f"{self._remote}/batches/{batch}"), pid=pid, batch=batch)
        try:
            answer = self._ask(host, script)
        except UnavailableError as error:
            since_s = self._silent_since.setdefault(host, time.monotonic())
            if time.monotonic() - since_s > self._options.lost_after_s:
                self._silent_since.pop(host, None)  # what is tried there next has as long
                return JobState("lost", host, f"no answer for {self._options.lost_after_s:g} s: {error}")
            before = self._seen[batch][1].state if batch in self._seen else "queued"
            return JobState(before, host, str(error))
        self._silent_since.pop(host, None)
        first, *lines = answer.splitlines() or [""]
        told = {name: text for name, _, text in (line.partition(" ") for line in lines)}
        if not self._pool.shared:
            for name, model in _FILES.items():
                if name in told:
                    write_file(self._folder.batches / batch / name, model.model_validate_json(told[name]))
        if ENDED in told:
            reason = Ended.model_validate_json(told[ENDED]).reason
            return JobState("failed" if reason else "ended", host, reason)
        if first == "alive":
            return JobState("running" if NODE in told else "queued", host)
        words = told.get(LOG) or self._refusals.get(batch) or "without a word"
        return JobState("lost", host, f"its process died: {words}")

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """End the processes; raise UnavailableError, once all others have ended, for a host that does not answer."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            problems = [text for text in pool.map(lambda one: self._stop(one, jobs[one]), jobs) if text]
        if problems:
            raise UnavailableError(f"what runs there goes on: {'; '.join(problems)}")

    def _stop(self, batch: str, pid: str) -> str:
        directory = shlex.quote(f"{self._remote}/batches/{batch}")
        script = _STOP.format(directory=directory, pid=pid, batch=batch, seconds=round(CANCEL_S - 20))
        try:
            self._ask(self._host(batch), script)
        except UnavailableError as error:
            return str(error)
        return ""

    def collect(self, batch: BatchFile) -> None:
        """Fetch the runs that have not come yet by tar, where the host has a folder of its own."""
        if self._pool.shared or not (places := missing_places(self._folder, batch)):
            return
        words = " ".join(shlex.quote(place) for place in places)
        script = (
            f"cd {shlex.quote(self._remote)}/results 2>/dev/null || exit 0\n"
            f'set --\nfor place in {words}; do [ ! -d "$place" ] || set -- "$@" "$place"; done\n'
            '[ $# -eq 0 ] || tar -cf - "$@"\n'
        )
        with (
            explain_refusals(self._folder.path, REMEDY),
            tempfile.NamedTemporaryFile(dir=self._folder.path, prefix=".fetch-", suffix=".tar") as archive,
        ):
            self._ask(self._host(batch.id), script, archive.fileno())
            path = Path(archive.name)
            if path.stat().st_size:
                install_archive(self._folder, batch, path)

    def _host(self, batch: str) -> str:
        if batch not in self._slots:
            self._slots[batch] = self._folder.read_batch(batch)[1]
        return self._options.hosts[self._slots[batch]]

    def _ask(self, host: str, script: str, output: int = subprocess.PIPE) -> str:
        """Run a script by sh on a host; raise UnavailableError with ssh's own words where there is no connection."""
        command = [*self._ssh_command(), host, "sh"]
        try:
            done = subprocess.run(
                command, input=script.encode(), stdout=output, stderr=subprocess.PIPE, timeout=ANSWER_S, check=False
            )
        except FileNotFoundError as error:
            raise UsageError("ssh: not found; needed is OpenSSH's client") from error
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{host}: no answer within {ANSWER_S:g} s") from error
        words = done.stderr.decode(errors="replace").strip()
        if done.returncode == 255:
            raise UnavailableError(f"{host}: {words or 'ssh failed without a word'}")
        if done.returncode != 0:
            raise CnnbenchError(f"{host}: {words or f'exit code {done.returncode}'}")
        return (done.stdout or b"").decode(errors="replace")

    def _ssh_command(self) -> list[str]:
        sockets = Path(tempfile.gettempdir(), f".cnnbench-ssh-{os.getuid()}")
        sockets.mkdir(mode=0o700, exist_ok=True)
        if sockets.stat().st_uid != os.getuid():
            raise CnnbenchError(f"{sockets}: belongs to another user; remove it, or set TMPDIR")
        patience_s = str(self._options.connect_s)
        settings = {
            "BatchMode": "yes", "ConnectTimeout": patience_s, "ServerAliveInterval": patience_s,
            "ServerAliveCountMax": "2", "ControlMaster": "auto", "ControlPath": f"{sockets}/%C", "ControlPersist": "30",
        }  # fmt: skip
        config = ["-F", self._options.config] if self._options.config else []
        return ["ssh", "-T", *config, *(word for name, text in settings.items() for word in ("-o", f"{name}={text}"))]

    @staticmethod
    def identify(environ: Mapping[str, str]) -> str:
        """Return the address that ssh reached this machine by, and the process."""
        connection = environ.get("SSH_CONNECTION", "").split()
        return f"ssh to {connection[2] if len(connection) == 4 else 'this machine'}, process {os.getpid()}"
