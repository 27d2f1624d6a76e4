# Interface of the servers: install, prepare, command line, readiness, and description for clients.
import os
import signal


class NotReady(Exception):
    """The server is not ready yet; with the reason."""


class Server:
    """One server of an instance. Subclasses define its details; starting and stopping is done elsewhere."""

    name = ""
    # Names of ports.WELL_KNOWN; the first is the one that clients use.
    port_names = ()
    # Servers that must be ready before this one is started.
    needs = ()
    stop_signal = signal.SIGTERM
    ready_within = 60.0
    # Seconds between readiness checks.
    ask_every = 0.05

    def __init__(self, instance):
        self.instance = instance

    @property
    def port(self):
        return self.instance.ports[self.name]

    def install(self):
        """Installs its programs if they are not installed."""

    def prepare(self):
        """Writes configuration and data folders. Existing data is kept."""

    def command(self):
        """(argv, environment, account or None for the caller's, working folder)."""
        raise NotImplementedError

    def check(self):
        """Returns if clients are served and topics, bucket or databases exist; raises NotReady otherwise."""
        raise NotImplementedError

    def describe(self):
        """Its part of services.json: addresses and file paths, no secret."""
        raise NotImplementedError

    def environment(self):
        """The deployment's variables for it, with secrets."""
        return {}


def bare_environment(**more):
    """The variables of the caller's environment that a server needs."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "JAVA_HOME")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, **more}
