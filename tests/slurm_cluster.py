"""A Slurm of two nodes on this machine, for tests: its own munge key, ports and directories.

Everything lies below one folder, and every process has SLURM_CONF in its environment, by which
`Cluster.stop` finds what is left. No accounting database, as on many small clusters; jobs are
not queued again unless they ask for it (JobRequeue=0).
"""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import time

NODES = ("n1", "n2")
MAX_ARRAY = 5  # so that an array of five is refused
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PATH = (
    f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"  # Debian has daemons where users do not look
)
PATIENCE_S = 600  # for anything that must happen, however slow the machine

# task/none and proctrack/linuxproc need no cgroups; cred_expire is also how long a job that is
# queued again must wait (by default two minutes).
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
JobRequeue=0
MaxArraySize={max_array}
MessageTimeout=60
SlurmdTimeout=600
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=2000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=10
PartitionName=closed Nodes=ALL AllowAccounts=nobody
"""


class CannotStart(Exception):
    """Why there is no Slurm on this machine."""


class Cluster:
    """A context manager: a cluster that is up, whose processes are gone at the end.

    Attributes:
      env: environment in which commands reach the cluster.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
        if missing:
            raise CannotStart(f"Slurm is not installed: no {', '.join(missing)}")
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _start(self) -> None:
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (self.folder / "state").mkdir()
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            raise CannotStart(f"user {os.getuid()} of this machine has no name") from None
        host = socket.gethostname().partition(".")[0]
        conf = CONF.format(
            host=host, user=user, folder=self.folder, ports=free_ports(3), max_array=MAX_ARRAY
        )
        (self.folder / "slurm.conf").write_text(conf)
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        self._until((munge / "socket").exists, "munged")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self.nodes() == dict.fromkeys(NODES, "idle"), "slurmctld")

    def _daemon(self, *command: str, name: str = "", cwd=None) -> None:
        name = name or command[0]
        with open(self.folder / f"{name}.err", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd or self.folder,
                env=self.env, start_new_session=True,
            )  # fmt: skip

    def _until(self, true, name: str) -> None:
        """Waits for a daemon to work; raises CannotStart when it ends or takes too long."""
        deadline = time.monotonic() + 60
        while not true():
            if self.daemons[name].poll() is not None or time.monotonic() > deadline:
                says = (self.folder / f"{name}.err").read_text(errors="replace").strip()
                raise CannotStart(f"{name} does not start: {says[-300:] or 'no message'}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends every process of the cluster: daemons, step daemons, jobs."""
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        self._kill(lambda pid: True)

    def start_node(self, node: str) -> None:
        """Starts slurmd. Its directory is that of the step daemons, too, and names the node."""
        (self.folder / f"cwd-{node}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-D", "-N", node, name=node, cwd=self.folder / f"cwd-{node}")

    def kill_node(self, node: str) -> None:
        """Kills everything on a node at once, as a power failure would."""
        cwd = str(self.folder / f"cwd-{node}")
        self._kill(lambda pid: of_node(pid, node, cwd))
        self.daemons[node].wait()

    def _kill(self, chosen) -> None:
        """Kills processes; all are stopped first, so that none reports the end of another."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pids = [pid for pid in self._processes() if chosen(pid)]
            if not pids:
                return
            for signum in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signum)
            time.sleep(0.1)

    def _processes(self) -> list[int]:
        """The processes that have the SLURM_CONF of this cluster, except for this one."""
        mark = f"SLURM_CONF={self.folder / 'slurm.conf'}"
        pids = [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and mark in environment(pid)]

    # Commands.

    def call(self, *command: str) -> str:
        """The output of a command of Slurm; fails if the command does."""
        answer = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def nodes(self) -> dict[str, str]:
        """{node: state}; {} while Slurm does not answer."""
        try:
            rows = self.call("sinfo", "--noheader", "--Node", "--format=%N %t", "--partition=main")
        except AssertionError:
            return {}
        return dict(row.split() for row in rows.splitlines())

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        fields = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.partition("=")[::2] for field in fields)

    def recover_node(self, node: str) -> None:
        self.start_node(node)
        self.call("scontrol", "update", f"nodename={node}", "state=resume")
        wait_until(lambda: self.nodes()[node] == "idle", f"{node} to be idle")


def wait_until(true, what: str, say=lambda: "") -> None:
    """Waits for something that must happen; `say` gives what to show when it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}: {say()}"
        time.sleep(0.1)


def environment(pid: int) -> list[str]:
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:  # it has ended, or belongs to another user
        return []


def of_node(pid: int, node: str, cwd: str) -> bool:
    """Whether a process is a daemon of a node, or belongs to a job there."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == cwd or f"SLURMD_NODENAME={node}" in environment(
            pid
        )
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]
