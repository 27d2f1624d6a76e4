# What every server offers to the commands: install, prepare, command line, readiness, and what others must know of it.
import os
import signal


class NotReady(Exception):
    """The server does not answer as it should yet; says how."""


class Server:
    """One server of an instance. Subclasses say what is theirs; nothing here starts or stops anything."""

    name = ""
    # Names of ports.WELL_KNOWN; the first is the one that clients use.
    port_names = ()
    # Servers that must be ready before this one is started.
    needs = ()
    stop_signal = signal.SIGTERM
    ready_within = 60.0
    # Seconds between two questions whether it is ready.
    ask_every = 0.05

    def __init__(self, instance):
        self.instance = instance

    @property
    def port(self):
        return self.instance.ports[self.name]

    def install(self):
        """Makes its programs available; nothing to do from the second time on."""

    def prepare(self):
        """Writes configuration and data folders. Data that is there stays."""

    def command(self):
        """(argv, environment, account or None for the caller's, working folder)."""
        raise NotImplementedError

    def check(self):
        """Returns when a client is served, its topics, bucket or databases there; raises NotReady otherwise."""
        raise NotImplementedError

    def describe(self):
        """Its part of services.json: addresses and file paths, no secret."""
        raise NotImplementedError

    def environment(self):
        """The deployment's variables for it, secrets included."""
        return {}


def bare_environment(**more):
    """The little of the caller's environment that a server needs."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "JAVA_HOME")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **more}
