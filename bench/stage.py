"""What runs is made here: the programs, the Debian root file system, the guests' initrd."""
import gzip
import glob
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
PACKAGES = "gcc,libc6-dev,libssl-dev,zstd,xz-utils,python3,perl,sqlite3"


class Failure(Exception):
    """Something is missing or broken: what failed, why, and what to do."""

    def __init__(self, what, why, todo):
        super().__init__("bench: %s failed: %s; %s" % (what, why, todo))


def need(program, package):
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        raise Failure("start %s" % program, "not installed", "apt-get install %s" % package)
    return path


def run(what, todo, command, **options):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", **options)
    if done.returncode:
        raise Failure(what, (done.stdout.strip().splitlines() or ["exit code %d" % done.returncode])[-1], todo)


def as_root(command):
    return command if os.geteuid() == 0 else ["unshare", "--map-root-user"] + command


def build_driver(stage):
    need("gcc", "gcc")
    sources = [os.path.join(HERE, name) for name in ("driver.c", "compute.c", "system.c")]
    run("build the workloads", "apt-get install gcc libc6-dev",
        ["gcc", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-o", os.path.join(stage, "driver")] +
        sources + ["-lm"])


def build_crypto(stage, tree):
    """Built in the Debian root, against its libcrypto."""
    shutil.copy(os.path.join(HERE, "crypto.c"), os.path.join(tree, "tmp"))
    run("build crypto.c in the root file system", "see above",
        as_root(["chroot", tree, "gcc", "-O2", "-Wall", "-o", "/tmp/crypto", "/tmp/crypto.c", "-lcrypto"]))
    shutil.move(os.path.join(tree, "tmp/crypto"), stage)


def find_image(vixen):
    """The image named bench, built if there is none."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    image = os.path.join(data, "vixen/images/bench")
    if not os.path.exists(os.path.join(image, "meta.json")):
        print("building the root file system (once): vixen image build", file=sys.stderr)
        command = [vixen, "image", "build", "debian-12", "--name", "bench", "--include", PACKAGES]
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
            raise Failure("build the root file system", "'%s' says why above" % " ".join(command),
                          "or run only what needs none: -k VMLINUZ -w alu,sort,...")
    return image


def unpack_image(image):
    """The image's files in a directory, for the native runs; kept in the cache, one for each build of the image."""
    debugfs = need("debugfs", "e2fsprogs")
    with open(os.path.join(image, "meta.json")) as file:
        stamp = json.load(file)["built"].replace(":", "")
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vixen/bench")
    tree = os.path.join(cache, stamp)
    if os.path.isdir(tree):
        return tree
    print("unpacking it for the native runs (once)", file=sys.stderr)
    shutil.rmtree(cache, ignore_errors=True)
    os.makedirs(tree + ".partial")
    # Complaints about owners it may not set do not matter.
    subprocess.run([debugfs, "-R", "rdump / %s.partial" % tree, os.path.join(image, "disk.raw")],
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if not os.path.exists(tree + ".partial/usr/bin/perl"):
        raise Failure("unpack the root file system", "debugfs left no usr/bin/perl in %s.partial" % tree,
                      "check that %s has 1 GiB free" % cache)
    os.rename(tree + ".partial", tree)
    return tree


def module_files(tree):
    """The disk's drivers and what they need, in the order in which they load."""
    base = glob.glob(os.path.join(tree, "lib/modules/*"))[0]
    depends = {}
    with open(os.path.join(base, "modules.dep")) as file:
        for line in file:
            path, _, rest = line.partition(":")
            depends[path] = rest.split()
    order = []
    for name in ("virtio_pci", "virtio_blk", "ext4"):
        for path in depends:
            if path.endswith("/%s.ko" % name):
                order += list(reversed(depends[path])) + [path]
    return [os.path.join(base, path) for path in dict.fromkeys(order)]


def make_stage(stage, names, tree):
    """Fills the directory that all three places see as their own."""
    build_driver(stage)
    with open(os.path.join(stage, "list"), "w") as file:
        file.write("\n".join(names) + "\n")
    for name in ("compute.c", "workloads.h", "apps", "app.py", "app.pl", "app.sql"):
        shutil.copy(os.path.join(HERE, name), stage)
    if tree:
        build_crypto(stage, tree)


def cpio_entry(name, mode, data=b""):
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def make_initrd(path, stage, tree):
    """The newc archive that Documentation/driver-api/early-userspace/buffer-format.rst describes."""
    directories = ["dev", "proc", "root", "tmp", "bench"] + (["bench/modules"] if tree else [])
    archive = [cpio_entry(name, 0o040755) for name in directories]
    files = {"bench/" + name: os.path.join(stage, name) for name in sorted(os.listdir(stage))}
    files["init"] = files.pop("bench/driver")
    if tree:
        files.update(("bench/modules/%d.ko" % i, file) for i, file in enumerate(module_files(tree)))
    for name, source in files.items():
        with open(source, "rb") as file:
            archive.append(cpio_entry(name, 0o100755, file.read()))
    archive.append(cpio_entry("TRAILER!!!", 0))
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"".join(archive))
