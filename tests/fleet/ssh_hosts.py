"""Two hosts for ssh on one machine: a real sshd each, in network and UTS namespaces, with keys of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from null_workload import PATIENCE_S

HOSTS = {"lab-a": 2, "lab-b": 6}
"""The hosts' names, and the last number of their addresses, which are of those for benchmarks (RFC 2544)."""


def find_obstacle() -> str:
    """Say why there can be no such hosts here; empty where there can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    for tool in ("sshd", "ssh", "ssh-keygen", "ip", "unshare"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return f"no {tool} here (Debian: openssh-server, iproute2)"
    probe = f"cnnbench-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


class SshHosts:
    """The hosts, between `start` and `stop`; `config` is what ssh reaches them by."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.config = directory, directory / "ssh_config"
        self._servers: dict[str, subprocess.Popen] = {}
        self._tag = f"{os.getpid() % 100000}"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        Path("/run/sshd").mkdir(exist_ok=True)
        self._key("client")
        (self.directory / "authorized_keys").write_text((self.directory / "client.pub").read_text())
        known, hosts = [], []
        for name in HOSTS:
            self._key(name)
            address = self.address(name)
            key = " ".join((self.directory / f"{name}.pub").read_text().split()[:2])
            known.append(f"[{address}]:2222 {key}\n")
            hosts.append(f"Host {name}\n  HostName {address}\n  Port 2222\n  User root\n")
            self._link(name)
            self.serve(name)
        (self.directory / "known_hosts").write_text("".join(known))
        self.config.write_text(
            "".join(hosts) + f"Host *\n  IdentityFile {self.directory}/client\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.directory}/known_hosts\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n"
        )

    def address(self, name: str) -> str:
        return f"198.18.{os.getpid() % 256}.{HOSTS[name]}"

    def serve(self, name: str) -> None:
        """Start a host's sshd, and wait until it answers."""
        config = self.directory / f"sshd_config.{name}"
        config.write_text(
            f"Port 2222\nListenAddress {self.address(name)}\nHostKey {self.directory}/{name}\nPidFile none\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\nStrictModes no\nUsePAM no\n"
            f"SetEnv PATH={self.programs(name)}:/usr/local/bin:/usr/bin:/bin TMPDIR={self.temporary(name)}\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        start = f"hostname {name} && exec /usr/sbin/sshd -D -e -f {config}"
        log = (self.directory / f"{name}.log").open("ab")
        self._servers[name] = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(name), "unshare", "--uts", "sh", "-c", start],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection((self.address(name), 2222), 1).close()
            except OSError:
                assert self._servers[name].poll() is None, (self.directory / f"{name}.log").read_text()
                assert time.monotonic() < deadline_s, f"sshd of {name} does not answer"
                time.sleep(0.02)
            else:
                return

    def programs(self, name: str) -> Path:
        """Return the folder of programs that a host has before all others."""
        path = self.directory / f"programs-{name}"
        path.mkdir(exist_ok=True)
        return path

    def temporary(self, name: str) -> Path:
        """Return a host's folder of temporary files, with the lock that makes it one machine."""
        path = self.directory / f"tmp-{name}"
        path.mkdir(exist_ok=True)
        return path

    def namespace(self, name: str) -> str:
        return f"cnnbench-{self._tag}-{name}"

    def cut(self, name: str) -> None:
        """Take a host's link down, as when a cable is pulled."""
        subprocess.run(["ip", "link", "set", self._interface(name), "down"], check=True)

    def mend(self, name: str) -> None:
        subprocess.run(["ip", "link", "set", self._interface(name), "up"], check=True)

    def _interface(self, name: str) -> str:
        return f"cb{self._tag}{name[-1]}"

    def _link(self, name: str) -> None:
        outside, inside, space = self._interface(name), f"cb{self._tag}{name[-1]}i", self.namespace(name)
        inner = ["ip", "-n", space]
        for command in (
            ["ip", "netns", "add", space],
            ["ip", "link", "add", outside, "type", "veth", "peer", "name", inside],
            ["ip", "link", "set", inside, "netns", space],
            ["ip", "addr", "add", f"198.18.{os.getpid() % 256}.{HOSTS[name] - 1}/30", "dev", outside],
            ["ip", "link", "set", outside, "up"],
            [*inner, "addr", "add", f"{self.address(name)}/30", "dev", inside],
            [*inner, "link", "set", inside, "up"],
            [*inner, "link", "set", "lo", "up"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"

    def _key(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name)]
        subprocess.run(command, check=True)

    def stop(self) -> None:
        for name, server in self._servers.items():
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(PATIENCE_S)
            subprocess.run(["ip", "netns", "del", self.namespace(name)], check=True)
