# Processes that outlive the script: started in a new session, identified by pid and start time, stopped with their session.
import contextlib
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass

KILL_WAIT = 10.0


@dataclass(frozen=True)
class Process:
    """A started server. The start time distinguishes it from a later process with the same pid."""

    pid: int
    started: str
    log: str

    def to_json(self):
        return asdict(self)


def _stat(pid):
    """(state, session, start time) of a process; None if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in brackets, may contain spaces and brackets.
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[3]), fields[19]


def started(pid):
    """Identifies this run of this pid by the boot and the clock tick of its start. None if it has ended or is a zombie."""
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX":
        return None
    return f"{_boot()}/{stat[2]}"


def alive(process):
    return started(process.pid) == process.started


def members(process):
    """The pids of the process and of its running descendants."""
    leader = started(process.pid)
    if leader is not None and leader != process.started:
        return []
    # A pid is not reused while a session has it: a session without a leader is still the old one.
    if leader is None and not process.started.startswith(_boot()):
        return []
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _stat(int(entry))
            if stat is not None and stat[1] == process.pid and stat[0] not in "ZX":
                pids.append(int(entry))
    return pids


def _boot():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def run_as(account):
    """Arguments of Popen to run a program as another account; none for the caller's account."""
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def spawn(argv, log, env, account=None, cwd="/"):
    """Starts a server in a new session, with env as its only environment."""
    with open(log, "ab") as sink:
        os.chmod(log, 0o600)
        streams = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": sink}
        child = subprocess.Popen(argv, env=env, cwd=cwd, start_new_session=True, **streams, **run_as(account))
    return child, Process(child.pid, started(child.pid) or f"{_boot()}/gone", log)


def _send(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stop(process, number=signal.SIGTERM, timeout=30.0):
    """Sends the signal, waits, then kills the rest of the session. True if it was still running."""
    running = members(process)
    if not running:
        return False
    if number != signal.SIGKILL:
        if alive(process):
            # A paused process handles a signal only after it is resumed.
            _send([process.pid], number)
            _send([process.pid], signal.SIGCONT)
        wait(lambda: not alive(process), timeout)
    _send(members(process), signal.SIGKILL)
    wait(lambda: not members(process), KILL_WAIT)
    return True


def pause(process):
    _send(members(process), signal.SIGSTOP)


def resume(process):
    _send(members(process), signal.SIGCONT)


def wait(done, timeout):
    end = time.monotonic() + timeout
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


def at_work_in(folder):
    """Whether a process that is visible to this user has the folder as its working directory."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{entry}/cwd") == folder:
                return True
    return False


def last_lines(path, since=0, count=20):
    """The end of a log, no further back than the given size."""
    try:
        with open(path, "rb") as file:
            file.seek(max(since, os.path.getsize(path) - 16384))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError as error:
        return [f"(no log: {error})"]
