# The servers, and starting and stopping a set of them.
import json
import os
import shlex
import threading
import time

from . import certificates, install, places, ports
from .errors import ServiceError
from .kafka import Kafka
from .mlflow import Mlflow, Mlflow29
from .postgres import Postgres
from .process import last_lines, spawn, stop
from .redis import Redis
from .s3 import S3
from .server import NotReady

KINDS = {kind.name: kind for kind in (Kafka, Redis, S3, Postgres, Mlflow, Mlflow29)}
# The servers that are started by default: those of the deployment.
DEPLOYED = tuple(name for name in KINDS if name != Mlflow29.name)


def server(instance, name):
    return KINDS[name](instance)


def known(names):
    """Splits the list of --only; fails on unknown names."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in KINDS:
            raise ServiceError(f"no service is called {name!r}", f"There are {', '.join(KINDS)}.")
    return with_needs(wanted)


def with_needs(names):
    """The names and their dependencies, in the order of KINDS."""
    wanted = set(names)
    for name in names:
        wanted |= set(KINDS[name].needs)
    return [name for name in KINDS if name in wanted]


class Start:
    """Starts servers in parallel, each in a thread; a failure of one ends the wait for all."""

    def __init__(self, instance, names):
        self.instance = instance
        self.servers = {name: server(instance, name) for name in names}
        self._ready = {name: threading.Event() for name in names}
        self._failed = threading.Event()
        self._failures = []
        self.begun = []

    def run(self):
        """Returns when all are ready. Otherwise stops the started ones and raises."""
        if "kafka" in self.servers or self.instance.options["redis_tls"]:
            certificates.ensure(self.instance)
        threads = [threading.Thread(target=self._guarded, args=(one,)) for one in self.servers.values()]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.1)
                if self._failed.is_set():
                    install.abort()
        except BaseException:
            self._failed.set()
            install.abort()
            for thread in threads:
                thread.join()
            self._undo()
            raise
        if self._failures:
            self._undo()
            raise ServiceError(*self._failures[0])

    def _undo(self):
        for name in reversed(self.begun):
            stop_one(self.instance, name)

    def _guarded(self, one):
        try:
            self._start(one)
            self._ready[one.name].set()
        except ServiceError as error:
            self._fail(f"{one.name}: {error.args[0]}", *error.remedy)
        except Exception as error:
            self._fail(f"{one.name}: {type(error).__name__}: {error}")

    def _fail(self, *lines):
        # The first failure is the cause; later ones are consequences.
        if not self._failed.is_set():
            self._failures.append(lines)
        self._failed.set()

    def _start(self, one):
        one.install()
        for need in one.needs:
            if need not in self._ready and not self.instance.running(need):
                raise ServiceError(f"needs {need}, which is stopped", f"Start it first: scripts/services start {need}")
            while need in self._ready and not self._ready[need].wait(0.05):
                self._give_up_with_others()
        one.prepare()
        for name in one.port_names:
            ports.demand(name, self.instance.ports[name])
        argv, environment, account, folder = one.command()
        self._give_up_with_others()
        begin = time.monotonic()
        log = self.instance.log(one.name)
        since = os.path.getsize(log) if os.path.exists(log) else 0
        child, process = spawn(argv, log, environment, account, folder)
        self.begun.append(one.name)
        self.instance.record(one.name, process)
        self._await(one, child, log, since)
        places.say(f"    {one.name:<8} {ports.HOST}:{one.port} ready after {time.monotonic() - begin:.1f} s")

    def _give_up_with_others(self):
        if self._failed.is_set():
            raise ServiceError("not started, since another one failed")

    def _await(self, one, child, log, since):
        begin = time.monotonic()
        while True:
            if child.poll() is not None:
                raise _gone_wrong(f"ended at once, with status {child.returncode}", log, since)
            try:
                return one.check()
            except NotReady as error:
                reason = error
            self._give_up_with_others()
            if time.monotonic() - begin > one.ready_within:
                raise _gone_wrong(f"not ready after {one.ready_within:.0f} s: {reason}", log, since)
            time.sleep(one.ask_every)


def _gone_wrong(message, log, since):
    return ServiceError(message, f"The end of {log}:", *last_lines(log, since))


def stop_one(instance, name, number=None):
    """Stops a server; True when it was running."""
    process = instance.process(name)
    if process is None:
        return False
    kind = KINDS[name]
    was_running = stop(process, kind.stop_signal if number is None else number)
    instance.forget(name)
    return was_running


def stop_all(instance):
    """Stops all running servers in parallel; returns their names."""
    names = instance.recorded()
    threads = [threading.Thread(target=stop_one, args=(instance, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    instance.forget_all()
    return names


def write_description(instance, names):
    """services.json for programs and env for shells, of the servers that were set up."""
    servers = [server(instance, name) for name in names]
    description = {one.name: one.describe() for one in servers}
    instance.write("services.json", json.dumps(description, indent=1) + "\n")
    instance.write("env", environment_text(servers))


def environment_text(servers):
    lines = []
    for one in servers:
        lines += [f"export {name}={shlex.quote(value)}\n" for name, value in one.environment().items()]
    return "".join(lines)
