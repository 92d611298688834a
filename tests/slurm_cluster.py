"""Run a real Slurm of one's own: munged, slurmctld and several slurmd on this machine, all on loopback, none left.

Each daemon has a keeper, which ends it and its jobs when this process ends, however it does.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import keeper
from null_workload import clean_environment, wait_until

NODES = {"spr01": "SPR", "genoa01": "GENOA", "genoa02": "GENOA"}
"""The nodes of a cluster and the feature of each."""

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")

_CONFIGURATION = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.sock,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskProlog={directory}/task_prolog
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
JobSubmitPlugins=lua
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=600
SlurmdTimeout=600
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=1-0 State=UP
PartitionName=brief Nodes=ALL MaxTime=5 State=UP
"""
"""Partitions: what is submitted to `urgent` has what runs in the others requeued; `brief` lets jobs run for 5 min."""

USED_UP = "the account poor has used up its node hours"

_QUOTA = f"""\
function slurm_job_submit(job, partitions, user)
    if job.account == "poor" then
        slurm.log_user("{USED_UP}")
        return slurm.ERROR
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
return slurm.SUCCESS
"""
"""A site's own rule, in place of the database that quotas are otherwise kept in."""


def explain_absence() -> str:
    """Say why there is no Slurm to test with; empty where there is."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)}: not found; apt-get install slurmctld slurmd slurm-client munge"


@contextmanager
def slurm_cluster(directory: Path, nodes: Mapping[str, str] = NODES) -> Iterator["SlurmCluster"]:
    """Run a cluster of these nodes, with what it writes in a directory."""
    with ExitStack() as stack:
        yield SlurmCluster(directory, nodes, stack)


class SlurmCluster:
    """A running cluster."""

    def __init__(self, directory: Path, nodes: Mapping[str, str], stack: ExitStack) -> None:
        self.directory, self.nodes, self._stack = directory, tuple(nodes), stack
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self.configuration = directory / "slurm.conf"
        self._configure(nodes)
        self._start_munge()
        self.start_controller("-c")
        for name in nodes:
            self.start_node(name)
        self.settle()

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which Slurm's commands find it."""
        return {"SLURM_CONF": str(self.configuration)}

    def tell(self, *command: str) -> str:
        """Run a command of Slurm's that must succeed; return what it prints."""
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(**self.variables))
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def state(self, node: str) -> str:
        """Return a node's state; empty while the controller does not answer."""
        command = ["sinfo", "--noheader", "--partition=main", f"--nodes={node}", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(**self.variables))
        return done.stdout.strip().upper()

    def settle(self) -> None:
        """Wait until all nodes are idle."""
        wait_until(lambda: {self.state(name) for name in self.nodes} == {"IDLE"}, "all nodes idle")

    def start_controller(self, *options: str) -> None:
        """Start slurmctld, which takes its state from the one before it."""
        self._keep("slurmctld", ["slurmctld", "-D", *options, "-f", str(self.configuration)])
        wait_until(lambda: self.state(self.nodes[0]), "slurmctld")

    def end_controller(self) -> None:
        """End slurmctld as an update of it does, which leaves nodes and jobs running."""
        os.kill(self._daemon("slurmctld"), signal.SIGTERM)
        wait_until(lambda: not keeper.children(self._keepers["slurmctld"].pid), "slurmctld ended")
        self._release("slurmctld")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        self._keep(name, ["slurmd", "-D", "-N", name, "-f", str(self.configuration)])

    def kill_node(self, name: str) -> None:
        """Take a node away with all that runs on it, as a power cut does."""
        self._release(name)

    def kill_daemon(self, name: str) -> None:
        """Kill a node's slurmd; what runs on the node goes on."""
        os.kill(self._daemon(name), signal.SIGKILL)

    def set_node(self, name: str, state: str) -> None:
        """Have an operator set a node's state."""
        self.tell("scontrol", "update", f"nodename={name}", f"state={state}", "reason=a test")

    def _configure(self, nodes: Mapping[str, str]) -> None:
        described = subprocess.run(["slurmd", "-C"], capture_output=True, text=True, check=True).stdout.split()
        shape = [word for word in described if word.split("=")[0] in _SHAPE]
        host = socket.gethostname().split(".")[0]
        port, *ports = _free_ports(1 + len(nodes))
        user = subprocess.run(["id", "--user", "--name"], capture_output=True, text=True, check=True).stdout.strip()
        cluster = f"test{port}"
        text = _CONFIGURATION.format(directory=self.directory, cluster=cluster, host=host, user=user, port=port)
        for (name, feature), port in zip(nodes.items(), ports, strict=True):
            (self.directory / f"spool.{name}").mkdir()
            line = [f"NodeName={name}", f"NodeHostname={host}", "NodeAddr=127.0.0.1", f"Port={port}", *shape]
            text += " ".join([*line, "RealMemory=100", f"Feature={feature}", "State=UNKNOWN"]) + "\n"
        (self.directory / "state").mkdir()
        self.configuration.write_text(text)
        (self.directory / "job_submit.lua").write_text(_QUOTA)
        # A folder of its own for temporary files, and so for the lock by which a machine makes one run at a time.
        (self.directory / "task_prolog").write_text(f"#!/bin/sh\necho export TMPDIR={self.directory}\n")
        (self.directory / "task_prolog").chmod(0o755)

    def _start_munge(self) -> None:
        key, socket_path = self.directory / "munge.key", self.directory / "munge.sock"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        options = [f"--key-file={key}", f"--socket={socket_path}", f"--pid-file={self.directory / 'munge.pid'}"]
        options += [f"--log-file={self.directory / 'munge.log'}", f"--seed-file={self.directory / 'munge.seed'}"]
        # By force, as it would have its socket in a folder that everybody can enter.
        self._keep("munged", ["munged", "--foreground", "--force", *options])
        wait_until(socket_path.exists, "munged")

    def _daemon(self, name: str) -> int:
        """Return the process that a keeper has started itself, not one that it was left with."""
        return keeper.children(self._keepers[name].pid)[0]

    def _keep(self, name: str, command: list[str]) -> None:
        with (self.directory / f"{name}.out").open("ab") as output:
            kept = subprocess.Popen(
                [sys.executable, keeper.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for the tests, which then end it
                env=clean_environment(**self.variables),
            )
        self._keepers[name] = kept
        self._stack.callback(_end, kept)

    def _release(self, name: str) -> None:
        _end(self._keepers.pop(name))


_SHAPE = ("CPUs", "Boards", "SocketsPerBoard", "CoresPerSocket", "ThreadsPerCore")


def _end(kept: subprocess.Popen[bytes]) -> None:
    assert kept.stdin is not None
    kept.stdin.close()
    kept.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
