"""A process for a student's code: without network, without your files, bounded in memory, processes and time.

What holds the code in depends on the machine, so :func:`choose` tries the ways in order, best first, and takes the
first in which a trial process can neither read the teacher's files nor see a network. All need Linux. None is proof
against a fault of the kernel: grade on a machine that holds nothing else of value.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from . import wire

GIGABYTE = 1 << 30
START = 120  # seconds until a process is ready: it imports torch from a disk that may be slow
OURS = 8  # processes of the sandbox itself, at most
UIDS = 64100  # with root: users of these numbers and up, which exist nowhere else
SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /etc/alternatives /etc/ld.so.cache".split()
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """What a submission may use."""

    cell: float = 120  # seconds of a cell
    notebook: float = 900  # seconds of all cells and calls together
    call: float = 20  # seconds of a call by a test
    memory: int = 4 * GIGABYTE  # bytes of all processes together
    processes: int = 64  # threads count, too
    file: int = 256 << 20  # bytes of a file, and of all files together where the way can tell


@dataclass(frozen=True)
class Way:
    """One way to hold code in."""

    name: str  # what the teacher reads
    tool: str | None  # the program it needs
    root: bool | None  # True: only for root; False: only for others; None: for all
    weak: bool = False  # hides nothing: taken only where it is asked for by name


WAYS = {
    "bubblewrap": Way("bubblewrap: own namespaces, no network, an unprivileged user", "bwrap", None),
    "unshare": Way("an unprivileged user in namespaces without network", "unshare", True),
    "user": Way("an unprivileged user", None, True),
    "rlimits": Way("limits only: the code can read your files and use your network", None, None, weak=True),
}


class NoSandbox(ValueError):
    """No way holds the code in on this machine."""


# ---------------------------------------------------------------------------------------- choose


def choose(secrets: list[Path], *, wanted: str | None = None) -> str:
    """The name in ``WAYS`` of the best way that works here and hides the secrets.

    Args:
        secrets: files and folders that the code must not read.
        wanted: try this way alone; a weak one is taken only so.

    Raises:
        NoSandbox: none works; the message says for each why.
        ValueError: no such way.
    """
    if wanted is not None and wanted not in WAYS:
        raise ValueError(f"a sandbox is one of {', '.join(WAYS)}; got {wanted!r}")
    faults = []
    for name in [wanted] if wanted else WAYS:
        fault = _fault(name, secrets, asked=wanted is not None)
        if fault is None:
            return name
        faults.append(f"  {name}: {fault}")
    raise NoSandbox(
        "nothing on this machine keeps students' code away from your files and the network:\n"
        + "\n".join(faults)
        + "\nInstall bubblewrap (apt install bubblewrap), or grade as root in a container without network (docker run "
        "--network none). If you have read the code and trust it: --sandbox rlimits"
    )


def _fault(name: str, secrets: list[Path], *, asked: bool) -> str | None:
    """What is wrong with a way on this machine, if anything."""
    way = WAYS[name]
    if not Path("/proc/self/stat").exists():
        return "needs Linux"
    if way.weak and not asked:
        return "hides nothing, so it is used only where --sandbox names it"
    if way.root is not None and way.root != (os.geteuid() == 0):
        return "is for root"
    if way.tool and not shutil.which(way.tool):
        return f"the program {way.tool} is not installed"
    try:
        found = _try(name, secrets)
    except (wire.Broken, TimeoutError, OSError) as error:
        hint = "; every user must be able to read Python and its packages" if way.root else ""
        return f"does not start ({error}){hint}"
    if way.weak:
        return None
    if found["readable"]:
        return f"the code could read {found['readable'][0]}; make its folder yours alone (chmod 700)"
    return "the code would have a network" if found["network"] else None


def _try(name: str, secrets: list[Path]) -> dict:
    """What a trial process finds that it can do."""
    sandbox = Sandbox(name, Limits(), secrets=secrets)
    try:
        return sandbox.channel.receive(seconds=START)
    except wire.Broken as error:
        raise wire.Broken(sandbox.complaint() or str(error)) from None
    finally:
        sandbox.close()


# ---------------------------------------------------------------------------------------- one process


class Sandbox:
    """A running process of :mod:`stylemoments.classroom.worker`; ask it over ``channel``, and ``close`` it at the end.

    Args:
        name: a way in ``WAYS``.
        limits: what it may use.
        secrets: for a trial; see :func:`choose`.
        fonts: files for Matplotlib, by name.
    """

    def __init__(self, name: str, limits: Limits, *, secrets: list[Path] | None = None, fonts: dict | None = None):
        adopt_orphans()
        self._others = _children()
        self.limits, self.killed = limits, None  # the reason, once it was killed
        self.folder = Path(tempfile.mkdtemp(prefix="stylemoments-"))
        self._errors = tempfile.TemporaryFile()
        uid = UIDS + os.getpid() % 1000 if os.geteuid() == 0 and name != "rlimits" else None
        if uid is not None and name != "bubblewrap":
            os.chown(self.folder, uid, uid)
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = self._start([*_prefix(name, limits), *_worker(theirs.fileno())], theirs.fileno(), name)
        self.channel = wire.Channel(ours)
        self._socket = ours
        self._watch = threading.Thread(target=self._watch_over, daemon=True)
        self._watch.start()
        order = {"uid": uid, "limits": asdict(limits), "fonts": fonts or {}}
        order["secrets"] = None if secrets is None else [str(path.absolute()) for path in secrets]
        with suppress(wire.Broken):  # who waits for the answer sees that none comes
            self.channel.send(order, seconds=START)

    def _start(self, command: list[str], number: int, name: str) -> subprocess.Popen:
        home = "/tmp" if name == "bubblewrap" else str(self.folder)
        return subprocess.Popen(
            command, cwd="/" if name == "bubblewrap" else home, env=_environment(home), pass_fds=[number],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors, start_new_session=True,
        )  # fmt: skip

    def complaint(self) -> str:
        """The last line that the process wrote before the student's code began."""
        self._errors.seek(0)
        lines = self._errors.read(10_000).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _watch_over(self) -> None:
        """Kill all processes as soon as together they use more than they may."""
        while self.process.poll() is None:
            found = descendants(self.process.pid)
            if sum(map(resident, found)) > self.limits.memory:
                self.kill(f"used more than {self.limits.memory / GIGABYTE:g} GB of memory")
            elif len(found) > self.limits.processes + OURS:
                self.kill(f"started more than {self.limits.processes} processes")
            time.sleep(0.1)

    def kill(self, reason: str) -> None:
        """End it and all that it started."""
        self.killed = self.killed or reason
        self._kill()

    def _kill(self) -> None:
        if self.process.poll() is None:  # else its number may be another process's by now
            kill_all(self.process.pid)

    def close(self) -> None:
        """End it and all that it started, and remove its files."""
        self._socket.close()
        self._kill()
        self.process.wait()
        self._watch.join()
        for pid in _children() - self._others:  # what it left behind
            kill_all(pid)
            os.waitpid(pid, 0)
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _worker(number: int) -> list[str]:
    return [sys.executable, "-I", "-m", "stylemoments.classroom.worker", str(number)]


def _environment(home: str) -> dict[str, str]:
    """All that the code sees of an environment."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "USER": "student",
        "MPLCONFIGDIR": f"{home}/matplotlib", "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": f"{home}/ipython", "HF_HUB_OFFLINE": "1",
    } | dict.fromkeys(THREADS, "1")  # fmt: skip


def _prefix(name: str, limits: Limits) -> list[str]:
    """What stands before the command."""
    if name == "unshare":
        return ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--ipc", "--pid", "--fork", "--kill-child=KILL"]
    return list(_bubblewrap(limits)) if name == "bubblewrap" else []


def _bubblewrap(limits: Limits) -> Iterator[str]:
    """A root of its own that holds the system, Python and the package, read-only, and an empty /tmp in memory."""
    yield from ("bwrap", "--die-with-parent", "--new-session")
    if os.geteuid() == 0:  # the worker gives its rights up by itself, after the folders are there
        yield from ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL")
        yield from ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    else:
        yield from ("--unshare-all", "--uid", "65534", "--gid", "65534")
    yield from ("--proc", "/proc", "--dev", "/dev", "--size", str(limits.file), "--tmpfs", "/dev/shm")
    yield from ("--size", str(limits.file), "--perms", "1777", "--tmpfs", "/tmp")
    for folder in [*SYSTEM, *_python()]:
        for parent in reversed(Path(folder).parents[:-1]):  # which bubblewrap would make for its user alone
            yield from ("--perms", "0755", "--dir", str(parent))
        if os.path.islink(folder):
            yield from ("--symlink", os.readlink(folder), folder)
        elif os.path.exists(folder):
            yield from ("--ro-bind", folder, folder)
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp")


def _python() -> list[str]:
    """Where Python, its packages and this package are."""
    package = str(Path(__file__).resolve().parents[1])
    found = [os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix, package]
    return [folder for folder in dict.fromkeys(found) if not folder.startswith("/usr/") and folder != "/usr"]


def fonts() -> dict[str, str]:
    """Matplotlib's list of fonts, so that no sandbox takes the time to make it anew."""
    import matplotlib
    from matplotlib import font_manager  # makes the list

    found = Path(matplotlib.get_cachedir()).glob(f"fontlist-v{font_manager.FontManager.__version__}*.json")
    return {path.name: path.read_text("utf-8") for path in found}


# ---------------------------------------------------------------------------------------- processes


def adopt_orphans() -> None:
    """Let whatever a descendant leaves behind become a child of this process, so that it can be found and killed."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER
    _libc().prctl(subreaper, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends."""
    signal_of_death = 1  # PR_SET_PDEATHSIG
    _libc().prctl(signal_of_death, signal.SIGKILL, 0, 0, 0)


def _libc():
    import ctypes

    return ctypes.CDLL(None)


def descendants(pid: int) -> list[int]:
    """Processes below one, itself not among them."""
    children = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            children.setdefault(_parent(entry.name), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _children() -> set[int]:
    """Processes whose parent is this one."""
    names = [entry.name for entry in os.scandir("/proc") if entry.name.isdigit()]
    return {int(name) for name in names if _parent(name) == os.getpid()}


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:  # it ended meanwhile
        return -1


def resident(pid: int) -> int:
    """Bytes of memory of a process; 0 if it ended."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def kill_all(pid: int) -> None:
    """Kill a child and all below it, again until none is left to fork anew."""
    for _ in range(100):
        found = [pid, *descendants(pid)]
        alive = [process for process in found if _kill(process)]
        if alive in ([], [pid]):  # the child itself stays in the table until it is waited for
            return
        time.sleep(0.01)


def _kill(pid: int) -> bool:
    """Whether it was there to be killed, and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return False
        os.kill(pid, signal.SIGKILL)
        return True
    except (OSError, IndexError):
        return False
