"""The three places where the workloads run, and what is heard from them."""
import contextlib
import glob
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time

from stage import Failure, need

MEMORY = "1G"
SILENCE_SECONDS = 300	# no workload takes that long anywhere
APPEND = "console=ttyS0 quiet panic=-1"


def native(site, cpus):
    return [os.path.join(site["stage"], "driver"), site["stage"], site["tree"] or ""]


def tcg(site, cpus):
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-M", "q35", "-accel", "tcg,thread=multi",
               "-cpu", "max", "-smp", str(cpus), "-m", MEMORY, "-display", "none", "-serial", "stdio", "-monitor",
               "none", "-no-reboot", "-kernel", site["kernel"], "-initrd", site["initrd"], "-append", APPEND]
    if site["disk"]:
        command += ["-drive", "if=none,id=root,format=raw,readonly=on,file=" + site["disk"],
                    "-device", "virtio-blk-pci,drive=root"]
    return command


def vixen(site, cpus):
    command = [site["vixen"], "run", "--engine", "soft", "--cpu", "host", "--cpus", str(cpus), "--memory", MEMORY,
               "--net", "none", "--no-reboot", "--kernel", site["kernel"], "--initrd", site["initrd"],
               "--append", APPEND]
    return command + (["--disk", site["disk"] + ",readonly"] if site["disk"] else [])


COMMANDS = {"native": native, "tcg": tcg, "vixen": vixen}


def qemu_version():
    """The peer is QEMU 10: an older TCG would be beaten too easily."""
    todo = ("add 'deb http://deb.debian.org/debian bookworm-backports main' to /etc/apt/sources.list.d, then "
            "apt-get update && apt-get install -t bookworm-backports qemu-system-x86; or leave it out: -p native,vixen")
    try:
        program = need("qemu-system-x86_64", "qemu-system-x86")
    except Failure:
        raise Failure("start QEMU", "qemu-system-x86_64 is not installed", todo) from None
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.[\d.]+", text)
    if not found or int(found.group(1)) < 10:
        raise Failure("start QEMU", "the peer is QEMU 10 or later, this is %s" % (text.splitlines() or ["none"])[0],
                      todo)
    return "QEMU " + found.group(0).split()[1]


def children(pid):
    found = []
    for path in glob.glob("/proc/%d/task/*/children" % pid):
        with contextlib.suppress(OSError), open(path) as file:
            found += [int(word) for word in file.read().split()]
    return found


def cpu_ns(pid):
    """CPU time of the threads of a process and of its children that live."""
    total = sum(map(cpu_ns, children(pid)))
    for path in glob.glob("/proc/%d/task/*/schedstat" % pid):
        with contextlib.suppress(OSError), open(path) as file:
            total += int(file.read().split()[0])
    return total


class Listener:
    """Takes the driver's lines, the moments when they came, and the CPU time that the whole guest took meanwhile."""

    def __init__(self, names, pid, started):
        self.names, self.pid, self.started = names, pid, started
        self.times, self.cpu_times, self.sums, self.failures = {}, {}, {}, {}
        self.done = False
        self.last = "nothing"
        self.began = (None, 0.0, 0)

    def hear(self, line, now):
        """True: the driver waits for an answer."""
        line = line.strip()
        self.last = line or self.last
        found = re.search(r"bench (init|begin|end|fail|done)\b ?(.*)", line)
        if found:
            getattr(self, "hear_" + found.group(1))(found.group(2).split(), now)
        return bool(found) and found.group(1) in ("begin", "end", "fail")

    def hear_init(self, words, now):
        self.times["boot"], self.cpu_times["boot"] = int((now - self.started) * 1e9), cpu_ns(self.pid)

    def hear_begin(self, words, now):
        cpu = cpu_ns(self.pid)
        self.began = (words[0], time.monotonic(), cpu)

    def hear_end(self, words, now):
        name, ns = words[0], int(words[1])
        name_begun, then, cpu_then = self.began
        wrong = clock_error(ns / 1e9, now - then) if name_begun == name else "an end without a beginning"
        if wrong:
            self.failures[name] = wrong
        else:
            self.times[name], self.sums[name] = ns, words[3]
            self.cpu_times[name] = cpu_ns(self.pid) - cpu_then if "boot" in self.times else int(words[2])

    def hear_fail(self, words, now):
        self.failures[words[0]] = " ".join(words[1:])

    def hear_done(self, words, now):
        self.done = True

    def finish(self, ending):
        """What was asked for and not heard of has failed."""
        for name in self.names:
            if name not in self.times and name not in self.failures:
                self.failures[name] = "%s; the last line was: %s" % (ending, self.last[:200])


def clock_error(inside, outside):
    """A guest whose clock goes wrong must not win by it. Lines take a moment to arrive when the host is busy."""
    if abs(inside - outside) <= 0.1 + 0.1 * outside:
        return None
    return "its clock says %.0f ms, the host's %.0f ms" % (inside * 1e3, outside * 1e3)


def pin(cpus):
    """The native runs get as many CPUs as the guests have."""
    return lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])


def answer(process):
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.flush()


def listen(process, listener):
    """Returns why it ended. Lines are stamped as they come; a place that says nothing for long is given up."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        pending = b""
        while True:
            if not selector.select(SILENCE_SECONDS):
                return "nothing was heard for %d s" % SILENCE_SECONDS
            data = os.read(process.stdout.fileno(), 65536)
            now = time.monotonic()
            if not data:
                return "it ended with exit code %d" % process.wait(30)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if listener.hear(line.decode(errors="replace"), now):
                    answer(process)


def run_place(place, site, names, cpus):
    """Runs `names` in one place and returns the Listener that heard it."""
    with tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(COMMANDS[place](site, cpus), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=errors, start_new_session=True,
                                   preexec_fn=pin(cpus) if place == "native" else None)
        listener = Listener(names, process.pid, started)
        try:
            ending = listen(process, listener)
        except subprocess.TimeoutExpired:
            ending = "it closed its console and went on running"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if not listener.done and said:
        listener.last = said[-1]
    listener.finish(ending)
    return listener
