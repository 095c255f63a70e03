"""Slurm on hosts of support/hosts.py: a controller, its authentication and a node for each host, all in one folder.

Owns: the daemons. The system's own Slurm, its files and /etc/hosts are not touched. Independent of: what a test expects.
"""
import os
import pathlib
import shutil
import signal
import subprocess
import time

import hosts
import moe

CONFIGURATION = """
ClusterName=moe
SlurmctldHost={controller}({net}.254)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
TmpFS={folder}/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=30
InactiveLimit=0
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
"""


class Slurm:
    def __init__(self, on):
        self.hosts = on
        self.folder = pathlib.Path(moe.fresh())
        for name in ("", "state", "tmp", *(f"spool.{host}" for host in on.names)):
            (self.folder / name).mkdir()
        self.daemons = []
        port = 20000 + os.getpid() % 5000 * 2
        nodes = "\n".join(f"NodeName={host} NodeAddr={on.address(host)} CPUs=32 RealMemory=8000 State=UNKNOWN" for host in on.names)
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(CONFIGURATION.format(controller=os.uname().nodename, net=on.net, folder=self.folder, nodes=nodes,
                                                  port=port, node_port=port + 1))
        self.env = os.environ | {"SLURM_CONF": str(self.conf), "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "eth0",
                                 "OMPI_MCA_oob_tcp_if_include": "eth0", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                                 "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        try:
            self.open()
        except Exception:
            self.close()
            raise

    def daemon(self, *line):
        log = open(self.folder / f"daemon.{len(self.daemons)}.log", "wb")
        self.daemons.append(subprocess.Popen(line, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True))

    def open(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                    f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munge.log",
                    f"--seed-file={self.folder}/munge.seed")
        moe_hosts = f"/etc/netns/{self.hosts.space(self.hosts.names[0])}/hosts"
        known = f"mount --bind {moe_hosts} /etc/hosts"
        self.daemon("unshare", "-m", "--", "bash", "-c", f"{known}; exec slurmctld -D -f {self.conf}")
        for host in self.hosts.names:
            self.daemon("nsenter", f"--net=/run/netns/{self.hosts.space(host)}", "unshare", "-u", "-m", "--", "bash", "-c",
                        f"hostname {host}; {known}; mount -t tmpfs none {self.folder}/tmp; exec slurmd -D -N {host} -f {self.conf}")
        self.wait_idle()

    def call(self, *line):
        return subprocess.run(line, env=self.env, capture_output=True, text=True, timeout=60)

    def wait_idle(self, seconds=60):
        limit = time.monotonic() + seconds
        while True:
            states = self.call("sinfo", "-h", "-N", "-o", "%T").stdout.split()
            if states and all(state == "idle" for state in states):
                return
            if time.monotonic() > limit:
                raise OSError(f"Slurm's nodes are {states}: {self.logs()}")
            time.sleep(0.2)

    def logs(self):
        return "".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("*.log")))

    def submit(self, script, options=(), words=(), folder=None, env=None):
        """A job's number. folder: from where it is submitted."""
        done = subprocess.run(["sbatch", "--parsable", *options, str(script), *map(str, words)], env=self.env | (env or {}),
                              cwd=folder or moe.FOLDER, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise AssertionError(f"sbatch: {done.stderr}{self.logs()}")
        return done.stdout.strip()

    def state(self, job):
        for word in self.call("scontrol", "show", "job", job).stdout.split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
        return None

    def finish(self, job, seconds=moe.LIMIT):
        """Its last state."""
        limit = time.monotonic() + seconds
        while (state := self.state(job)) in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"):
            if time.monotonic() > limit:
                raise AssertionError(f"job {job} is {state} after {seconds} s: {self.logs()}")
            time.sleep(0.2)
        return state

    def close(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.daemons):
                if process.poll() is None:
                    try:
                        os.killpg(process.pid, number)
                    except OSError:
                        pass
            time.sleep(0.5)
        for process in self.daemons:
            process.wait(10)


def make(n):
    """Slurm on n hosts, or the test is skipped (exit 77)."""
    for program in ("slurmctld", "slurmd", "munged", "nsenter"):
        if not shutil.which(program):
            moe.skip(f"no {program}")
    on = hosts.make(n)
    try:
        return Slurm(on)
    except OSError as error:
        on.close()
        moe.skip(f"Slurm does not start here: {error}")
