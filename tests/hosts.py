"""Several hosts on one machine: network namespaces with a link of their own to one bridge."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

LINK = "eth0"


def can_make_hosts() -> bool:
    """Whether iproute2 is there and may make namespaces and links."""
    if shutil.which("ip") is None:
        return False
    name = f"atd{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if not made:
        return False
    linked = _ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two", check=False)
    bridged = _ip("-n", name, "link", "add", "bridge", "type", "bridge", check=False)
    _ip("netns", "delete", name)
    return linked == bridged == 0


class Host:
    """One namespace, its number, its address, and the processes in it."""

    def __init__(self, switch: str, number: int) -> None:
        self.number, self.name = number, f"{switch}-{number}"
        self.address = f"10.77.0.{number}"
        port = f"p{number}"
        _ip("netns", "add", self.name)
        _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", LINK, "netns", self.name)
        _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", LINK)
        for link in ("lo", LINK):
            _ip("-n", self.name, "link", "set", link, "up")

    @property
    def prefix(self) -> list[str]:
        """What makes a command run here."""
        return ["ip", "netns", "exec", self.name]

    def supervise(self, command: str, log: Path, environment: Mapping[str, str]) -> None:
        """Run a command here, and again whenever it ends, as a service unit would."""
        with log.open("a") as file:
            subprocess.Popen(
                [*self.prefix, "bash", "-c", f"while :; do {command}; sleep 1; done"],
                env=os.environ | {"GLOO_SOCKET_IFNAME": LINK} | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def answers(self, port: int) -> bool:
        """Whether something here accepts connections at a port."""
        knock = ["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{port}"]
        return subprocess.run([*self.prefix, *knock], capture_output=True, check=False).returncode == 0

    def link(self, state: str) -> None:
        """Set the link ``up`` or ``down``."""
        _ip("-n", self.name, "link", "set", LINK, state)

    def kill(self) -> None:
        """The power goes: every process here is killed."""
        deadline = time.monotonic() + 20
        while pids := self._pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{len(pids)} processes of {self.name} cannot be killed"
            time.sleep(0.1)

    def remove(self) -> None:
        self.kill()
        _ip("netns", "delete", self.name)

    def _pids(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split() if not _is_dead(int(pid))]


class Network:
    """A bridge in a namespace of its own, and the hosts on it."""

    def __init__(self) -> None:
        self._switch = f"atd{os.getpid()}"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        self.hosts: list[Host] = []

    def add(self) -> Host:
        """Another host, numbered from one."""
        self.hosts.append(Host(self._switch, len(self.hosts) + 1))
        return self.hosts[-1]

    def remove(self) -> None:
        for host in self.hosts:
            host.remove()
        _ip("netns", "delete", self._switch)


def _ip(*arguments: str, check: bool = True) -> int:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.returncode


def _is_dead(pid: int) -> bool:
    """Whether only its entry in the process table is left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
