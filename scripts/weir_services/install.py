# Finds tools on the machine, installs missing ones, and fills the cache exactly once.
import contextlib
import fcntl
import glob
import os
import re
import shutil
import signal
import subprocess
import threading
import time

from . import places
from .errors import ServiceError

# Package managers allow one installation at a time.
_PACKAGES = threading.Lock()
_CHILDREN = set()
_CHILDREN_CHANGE = threading.Lock()
_ABORTED = threading.Event()


def run(argv, failure, timeout=None, killable=True, **how):
    """Runs a command to its end; its output is part of the error if it fails. Returns stdout and stderr. how: Popen's."""
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **how}
    try:
        child = subprocess.Popen(argv, text=True, errors="replace", start_new_session=True, **how)
    except OSError as error:
        raise ServiceError(f"{failure}: {error}") from error
    if killable:
        with _CHILDREN_CHANGE:
            _CHILDREN.add(child)
            if _ABORTED.is_set():
                _kill(child)
    try:
        output = child.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired as error:
        _kill(child)
        child.communicate()
        raise ServiceError(f"{failure}: no end after {timeout:.0f} s") from error
    finally:
        with _CHILDREN_CHANGE:
            _CHILDREN.discard(child)
    if child.returncode != 0:
        raise ServiceError(f"{failure} (exit status {child.returncode})", *output.splitlines()[-20:])
    return output


def abort():
    """Ends the processes of run() in other threads, current and future ones, after the command has failed."""
    _ABORTED.set()
    with _CHILDREN_CHANGE:
        for child in _CHILDREN:
            _kill(child)


def _kill(child):
    # With its children, such as compilers. It has not been waited for, so the pid is still valid.
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def tool(name, package, folders=()):
    """The path of a program; installs its package if it is missing. folders: patterns, in addition to PATH."""
    found = _find(name, folders)
    if found is None:
        with _PACKAGES:
            places.say(f"==> installing {package}")
            command = [os.path.join(places.SCRIPTS, "install-package"), package]
            # A killed package manager leaves packages partially installed.
            run(command, f"cannot install {package}, which has {name}", killable=False)
        found = _find(name, folders)
    if found is None:
        raise ServiceError(f"{package} was installed but {name} is not on PATH")
    return found


def _find(name, patterns):
    beside = [folder for pattern in patterns for folder in sorted(glob.glob(pattern), key=numbers, reverse=True)]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", *beside]))


def version_of(argv, pattern):
    """The numbers of the first match in a program's version output."""
    text = run(argv, f"cannot run {argv[0]}", timeout=60)
    match = re.search(pattern, text)
    if not match:
        raise ServiceError(f"no version in the output of {' '.join(argv)}: {text.strip()[:200]!r}")
    return numbers(match.group(1))


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version))


@contextlib.contextmanager
def _locked(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(title, made_from, *parts):
    """Decorates a function that fills an empty folder of the cache; calling it gives the folder, filled once.

    The stamp is written last, so an interrupted fill is begun again. It holds made_from: other contents, another fill.
    """

    def wrap(fill):
        def get():
            folder = os.path.join(places.cache(), *parts)
            stamp = os.path.join(folder, "made-from")
            with _locked(folder):
                if _text(stamp) != made_from:
                    places.say(f"==> {title}")
                    start = time.monotonic()
                    shutil.rmtree(folder, ignore_errors=True)
                    os.makedirs(folder)
                    fill(folder)
                    with open(stamp, "w", encoding="utf-8") as file:
                        file.write(made_from)
                    places.say(f"    {title}: {time.monotonic() - start:.0f} s")
            return folder

        return get

    return wrap


def _text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return None


def python_environment(name, requirements):
    """The folder of the Python environment that scripts/venv keeps for these requirements."""
    run(
        [os.path.join(places.SCRIPTS, "venv"), name, requirements],
        f"cannot make the Python environment {name}",
        env={**os.environ, "WEIR_CACHE": places.cache()},
    )
    return os.path.join(places.cache(), f"venv-{name}")
