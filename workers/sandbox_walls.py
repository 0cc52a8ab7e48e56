"""The walls of the sandbox: what a process and its children can no longer see, reach or use up."""

import ctypes
import os
import resource
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MOUNTS, NAMES, IPC, USERS, PIDS, NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
# A flag of a mount as statvfs says it, and as mount wants it: in a user namespace they must stay.
KEPT = ((8, 8), (1024, 1024), (2048, 2048), (4096, 1 << 21))
NO_NEW_PRIVILEGES, SUBREAPER, DUMPABLE, DROP_BOUND = 38, 36, 4, 24
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
LAST_CAPABILITY = 63
FIRST_UID = 62_000  # root's jobs become somebody whom nothing belongs to
ROOM = "/room"  # where a job may write; Python itself may lie in /tmp
ROOM_SIZE = "size=16m,nr_inodes=1k,mode=1777"
SYSTEM = ("/usr", "/bin", "/lib", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
NEW_ROOT = "/proc"  # there is one everywhere, and nobody's files are in it

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode())
    check(done, f"mount {target}")


def enclose(python: Sequence[str], hidden: Sequence[str]) -> None:
    """From now on there is Python to be read, and nothing else: no files, no network.

    Raises OSError where this machine does not allow it.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = MOUNTS | NAMES | IPC | NETWORK
    unshare(flags if not uid else flags | USERS)
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    mount("none", "/", "", REC | PRIVATE)
    mount("tmpfs", NEW_ROOT, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    for path in outermost([*SYSTEM, *python]):
        show(path)
    for path in hidden:
        hide(path)
    for device in DEVICES:
        show_device(device)
    enter()


def outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie in another one; in an order in which they can be mounted."""
    found: list[str] = []
    for path in sorted(set(paths), key=len):
        if Path(path).exists() and not any(path.startswith(f"{each}/") for each in found):
            found.append(path)
    return found


def show(path: str) -> None:
    place = Path(NEW_ROOT + path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_symlink() and path in SYSTEM:
        place.symlink_to(Path(path).readlink())
        return
    place.mkdir(exist_ok=True)
    mount(os.path.realpath(path), str(place), "", BIND | REC)
    seal(str(place))


def seal(place: str) -> None:
    had = os.statvfs(place).f_flag
    kept = sum(wanted for said, wanted in KEPT if had & said)
    mount("none", place, "", BIND | REMOUNT | RDONLY | NOSUID | NODEV | kept)


def hide(path: str) -> None:
    place = NEW_ROOT + path
    if Path(place).is_dir():
        mount("tmpfs", place, "tmpfs", NOSUID | NODEV | RDONLY, "size=4k,mode=000")


def show_device(device: str) -> None:
    place = Path(NEW_ROOT + device)
    place.parent.mkdir(exist_ok=True)
    place.touch()
    mount(device, str(place), "", BIND)


def enter() -> None:
    old = Path(NEW_ROOT) / "old"
    for place in (old, Path(NEW_ROOT + ROOM)):
        place.mkdir()
    if not Path(NEW_ROOT + "/tmp").exists():
        Path(NEW_ROOT + "/tmp").symlink_to(ROOM)
    os.chdir(NEW_ROOT)
    number = PIVOT_ROOT[os.uname().machine]
    check(libc.syscall(number, b".", b"old"), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/old", DETACH), "umount")
    Path("/old").rmdir()
    mount("none", "/", "", BIND | REMOUNT | RDONLY | NOSUID | NODEV)


def begin_room() -> None:
    """Processes and files of one job: they end with it."""
    unshare(PIDS | MOUNTS)
    mount("tmpfs", ROOM, "tmpfs", NOSUID | NODEV, ROOM_SIZE)


def may_change_user(slot: int) -> bool:
    """Root outside of user namespaces; to be asked while there is a /proc."""
    ranges = [tuple(map(int, line.split())) for line in read_map()]
    uid = FIRST_UID + slot
    return os.getuid() == 0 and any(first <= uid < first + most for first, _, most in ranges)


def read_map() -> list[str]:
    return Path("/proc/self/uid_map").read_text().splitlines()


def give_up(uid: int) -> None:
    """Every right that a process can do without, for ever. `uid` 0: it stays who it is."""
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)  # with it all capabilities go
    else:
        drop_capabilities()
    libc.prctl(DUMPABLE, 0, 0, 0, 0)  # no other process of ours may look into it


def adopt_orphans() -> None:
    libc.prctl(SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """And theirs, which become ours as they lose their parents."""
    place = Path(f"/proc/self/task/{os.getpid()}/children")
    while children := [int(pid) for pid in place.read_text().split()]:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def drop_capabilities() -> None:
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(DROP_BOUND, capability, 0, 0, 0)  # refused where there is none of this number
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def count_tasks() -> int:
    """Of this user, everywhere: what its limit of processes counts where there are no walls."""
    count = 0
    for place in Path("/proc").glob("[0-9]*/task"):
        with suppress(OSError):  # it has just ended
            count += len(list(place.iterdir())) if place.stat().st_uid == os.getuid() else 0
    return count


def limit(*, seconds: float, memory_bytes: int, processes: int) -> None:
    for name, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (most, most))
