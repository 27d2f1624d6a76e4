# One set of servers in one folder: its ports, options, processes and files, kept so that any later command finds them.
import contextlib
import fcntl
import json
import os
import secrets
import threading

from . import ports
from .errors import ServiceError
from .process import Process, alive, members


class Instance:
    """The folder and its record. Every change is written immediately, so that a killed script leaves a correct record."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self.ports = {}
        self.options = {}
        self.owners = []
        self._processes = {}
        self._changing = threading.RLock()

    @contextlib.contextmanager
    def locked(self):
        """One command at a time changes an instance; the record is read under the lock."""
        while True:
            os.makedirs(self.folder, mode=0o755, exist_ok=True)
            with open(self.path("lock"), "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._is(lock):
                    # The folder was removed while this waited.
                    continue
                self.read()
                yield self
                return

    def _is(self, lock):
        try:
            return os.path.samestat(os.fstat(lock.fileno()), os.stat(self.path("lock")))
        except FileNotFoundError:
            return False

    def read(self):
        try:
            with open(self.path("state.json"), encoding="utf-8") as file:
                state = json.load(file)
        except FileNotFoundError:
            return
        except ValueError as error:
            remedy = "Stop what runs by hand, remove the folder and start anew."
            raise ServiceError(f"{self.path('state.json')} is damaged: {error}", remedy) from error
        self.ports, self.options, self.owners = state["ports"], state["options"], state["owners"]
        self._processes = {name: Process(**fields) for name, fields in state["processes"].items()}

    def save(self):
        with self._changing:
            processes = {name: process.to_json() for name, process in self._processes.items()}
            state = {"ports": self.ports, "options": self.options, "owners": self.owners, "processes": processes}
            self.write("state.json", json.dumps(state, indent=1) + "\n")

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def make(self, *parts, mode=0o700):
        """Makes a folder inside, and those above it; returns its path."""
        path = self.folder
        for part in parts:
            path = os.path.join(path, part)
            os.makedirs(path, mode=mode, exist_ok=True)
        return path

    def write(self, name, text, mode=0o600):
        """Writes a file atomically; returns its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fresh = f"{path}.{secrets.token_hex(4)}.new"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(fresh, path)
        return path

    def secret_file(self, name):
        return self.path("secrets", name)

    def secret(self, name, size=24):
        """A random word of this instance, generated at first use and stored."""
        with self._changing:
            try:
                with open(self.secret_file(name), encoding="ascii") as file:
                    return file.read()
            except FileNotFoundError:
                word = secrets.token_hex(size)
                self.write(f"secrets/{name}", word)
                return word

    def log(self, name):
        self.make("logs")
        return self.path("logs", f"{name}.log")

    def settle_ports(self, names, choice):
        """An instance keeps its ports from start to start, unless the other kind is requested."""
        before = self.options.setdefault("ports", choice or "fixed")
        if choice and choice != before:
            if self.recorded():
                raise ServiceError(f"{self.folder} runs on {before} ports", "Stop it first: scripts/services down")
            self.ports.clear()
            self.options["ports"] = choice
        for name in names:
            if name not in self.ports:
                fixed = self.options["ports"] == "fixed"
                self.ports[name] = ports.WELL_KNOWN[name] if fixed else ports.pick_free(self.ports.values())

    def process(self, name):
        return self._processes.get(name)

    def running(self, name):
        process = self.process(name)
        return process is not None and alive(process)

    def recorded(self):
        """Names of servers with processes that may still run."""
        return [name for name, process in self._processes.items() if members(process)]

    # Servers start in separate threads: the data of save() is changed only under its lock.
    def record(self, name, process):
        with self._changing:
            self._processes[name] = process
            self.save()

    def forget(self, name):
        with self._changing:
            self._processes.pop(name, None)
            self.save()

    def forget_all(self):
        with self._changing:
            self._processes.clear()
            self.save()

    def set_option(self, name, value):
        with self._changing:
            self.options[name] = value
            self.save()
