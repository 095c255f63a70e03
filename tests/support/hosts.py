"""Hosts on one machine: network namespaces behind a bridge, each with its host name, its /etc/hosts and its firewall.

Owns: the namespaces, the bridge, the agent that mpirun starts its daemons with in place of ssh, the job on them.
Independent of: what a test expects. Needs root and the right to make namespaces; without them a test is skipped.
"""
import os
import pathlib
import shutil
import subprocess
import time

import moe

PORTS = (20000, 100)  # of MPI's messages in a job with FIREWALLED: the first, and how many


def call(*words, **options):
    return subprocess.run(words, capture_output=True, text=True, **options)


def must(*words):
    done = call(*words)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Hosts:
    """n hosts h1, h2, ...; close() removes them and every process that is left in them."""

    def __init__(self, n):
        self.names = [f"h{i + 1}" for i in range(n)]
        self.key = f"{os.getpid() % 100000:05d}"
        self.net = f"10.{64 + os.getpid() // 250 % 60}.{os.getpid() % 250}"
        self.bridge = f"mb{self.key}"
        self.folder = pathlib.Path(moe.fresh())
        self.folder.mkdir()
        self.made = []
        try:
            self.open()
        except OSError:
            self.close()
            raise

    def space(self, host):
        return f"m{self.key}{host}"

    def link(self, host):
        return f"v{self.key}{host}"

    def address(self, host):
        return f"{self.net}.{self.names.index(host) + 1}"

    def open(self):
        must("ip", "link", "add", self.bridge, "type", "bridge")
        must("ip", "addr", "add", f"{self.net}.254/24", "dev", self.bridge)
        must("ip", "link", "set", self.bridge, "up")
        known = "127.0.0.1 localhost\n" + "".join(f"{self.address(host)} {host}\n" for host in self.names)
        known += f"{self.net}.254 {os.uname().nodename}\n"
        for host in self.names:
            space, link = self.space(host), self.link(host)
            must("ip", "netns", "add", space)
            self.made.append(host)
            etc = pathlib.Path("/etc/netns", space)
            etc.mkdir(parents=True, exist_ok=True)
            (etc / "hosts").write_text(known)
            must("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            must("ip", "link", "set", link, "master", self.bridge, "up")
            self.inside(host, "ip", "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self.inside(host, "ip", "link", "set", "lo", "up")
            self.inside(host, "ip", "link", "set", "eth0", "up")
        self.tree()
        (self.folder / "hosts").write_text("".join(f"{host} slots=4\n" for host in self.names))
        agent = self.folder / "agent"
        agent.write_text("#!/bin/bash\nhost=$1\nshift\n"
                         f"exec ip netns exec m{self.key}$host unshare -u -m -- bash -c \"$(cat <<END\n"
                         f"hostname $host; . {self.folder}/mounts.$host; cd $PWD; $*\nEND\n)\"\n")
        agent.chmod(0o755)
        for host in self.names:
            self.mounts(host, "")

    def tree(self):
        """launch/ beside the program that is tested, as in a source tree."""
        shutil.copytree(os.path.join(moe.SOURCE, "launch"), self.folder / "tree" / "launch")
        (self.folder / "tree" / "build").mkdir()
        self.program = str(self.folder / "tree" / "build" / "moe_run")
        shutil.copy(moe.PROGRAM, self.program)

    def mounts(self, host, text):
        """Shell lines that are run on the host before anything else, in mounts of its own."""
        (self.folder / f"mounts.{host}").write_text(text)

    def replace(self, host, path, other):
        """From the next job on the host has another file there."""
        self.mounts(host, f"mount --bind {other} {path}\n")

    def inside(self, host, *words):
        return must("ip", "netns", "exec", self.space(host), *words)

    def cut(self, host):
        must("ip", "link", "set", self.link(host), "down")

    def join(self, host):
        """Until the others reach it again: a bridge and its neighbours take a moment to notice."""
        must("ip", "link", "set", self.link(host), "up")
        other = self.names[0] if host != self.names[0] else self.names[-1]
        limit = time.monotonic() + 20
        while time.monotonic() < limit:  # nobody listens there, so a host that answers refuses
            done = call("ip", "netns", "exec", self.space(other), "timeout", "1", "bash", "-c",
                        f"exec 3<>/dev/tcp/{self.address(host)}/9")
            if "refused" in done.stderr:
                return
            time.sleep(0.1)

    def block(self, host):
        """A firewall that drops what comes in for MPI's messages."""
        first, count = PORTS
        self.inside(host, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", f"{first}:{first + count}", "-j", "DROP")

    def unblock(self, host):
        self.inside(host, "iptables", "-F", "INPUT")

    def add(self, host, name, address):
        """One more interface, which leads nowhere."""
        self.inside(host, "ip", "link", "add", name, "type", "bridge")
        self.inside(host, "ip", "addr", "add", address, "dev", name)
        self.inside(host, "ip", "link", "set", name, "up")

    def remove(self, host, name):
        call("ip", "netns", "exec", self.space(host), "ip", "link", "del", name)

    def processes(self, host):
        """{pid: command line} of all that runs on the host."""
        found = {}
        for pid in must("ip", "netns", "pids", self.space(host)).split():
            try:
                line = pathlib.Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found[int(pid)] = line
        return found

    def ranks(self, host):
        """{pid: rank} of the job's ranks on the host."""
        return {pid: moe.rank_of(pid) for pid, line in self.processes(host).items()
                if line and "moe_run" in line.split()[0] and moe.rank_of(pid) is not None}

    def left(self):
        return {host: lines for host in self.names if (lines := self.processes(host))}

    def wait_until_empty(self, seconds):
        """Seconds until no process is left on any host; None: some are."""
        start = time.monotonic()
        while self.left():
            if time.monotonic() - start > seconds:
                return None
            time.sleep(0.1)
        return time.monotonic() - start

    def start(self, ranks, words, options=(), per_host="node", env=None):
        """launch/run on h1, over all hosts. words: moe_run's arguments."""
        first, count = PORTS
        line = [str(self.folder / "tree" / "launch" / "run"), "-np", str(ranks), "--hostfile", str(self.folder / "hosts"),
                "--map-by", per_host, "--bind-to", "none", "--mca", "plm_rsh_agent", str(self.folder / "agent"),
                "--mca", "btl", "tcp,self", "--mca", "oob_tcp_if_include", "eth0",
                "--mca", "btl_tcp_port_min_v4", str(first), "--mca", "btl_tcp_port_range_v4", str(count)]
        if not any("btl_tcp_if_include" in option for option in options):
            line += ["--mca", "btl_tcp_if_include", "eth0"]
        line += [*options, "--", *words]
        host = self.names[0]
        text = f"hostname {host}; . {self.folder}/mounts.{host}; exec \"$@\""
        return moe.start(["ip", "netns", "exec", self.space(host), "unshare", "-u", "-m", "--", "bash", "-c", text, "job", *line],
                         cwd=moe.FOLDER)

    def end_all(self):
        for host in self.made:
            for pid in self.processes(host):
                try:
                    os.kill(pid, 9)
                except OSError:
                    pass

    def close(self):
        self.end_all()
        time.sleep(0.1)
        for host in self.made:
            call("ip", "netns", "del", self.space(host))
            call("ip", "link", "del", self.link(host))
            shutil.rmtree(f"/etc/netns/{self.space(host)}", ignore_errors=True)
        call("ip", "link", "del", self.bridge)


def make(n):
    """The hosts, or the test is skipped (exit 77)."""
    if os.geteuid() != 0:
        moe.skip("hosts are network namespaces, which need root")
    if not shutil.which("ip") or not shutil.which("unshare") or not shutil.which("iptables"):
        moe.skip("no ip (iproute2), no unshare or no iptables")
    try:
        return Hosts(n)
    except OSError as error:
        moe.skip(f"no network namespaces here: {error}")
