# PostgreSQL: a separate cluster with the databases `airflow` and `mlflow`, each with a role of the same name.
import os
import pwd
import shutil
import signal
import subprocess
import tempfile

from . import install, places, ports, process
from .errors import ServiceError
from .server import NotReady, Server, bare_environment

SUPERUSER = "postgres"
DATABASES = ("airflow", "mlflow")
CHILDREN_END = 10.0
# Where Debian, Fedora and Homebrew keep the server's programs, which are not on PATH.
PROGRAMS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
# Created if missing: \gexec runs the result of the query.
CREATE = """SELECT 'CREATE ROLE {name} LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') \\gexec
ALTER ROLE {name} PASSWORD '{password}';
SELECT 'CREATE DATABASE {name} OWNER {name}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec
"""


class Postgres(Server):
    name = "postgres"
    port_names = ("postgres",)
    # "Fast" shutdown: does not wait for clients to disconnect.
    stop_signal = signal.SIGINT

    def install(self):
        self.program = install.tool("postgres", "postgresql", PROGRAMS)
        minimum = places.pins("postgres")["minimum"]
        found = install.version_of([self.program, "--version"], r"\) (\d+)")
        if found < install.numbers(minimum):
            raise ServiceError(f"{self.program} is version {found[0]}: {minimum} or newer is needed")

    @property
    def data(self):
        return self.instance.options["postgres_data"]

    def _clear_after_kill(self):
        """Removes the lock file of a killed server, whose pid looks alive while it is a zombie."""
        lock = os.path.join(self.data, "postmaster.pid")
        try:
            with open(lock, encoding="utf-8") as file:
                pid = int(file.readline())
        except (FileNotFoundError, ValueError):
            return
        if process.started(pid) is None:
            # The children of a killed server end soon by themselves; until then they use the data.
            process.wait(lambda: not process.at_work_in(os.path.realpath(self.data)), CHILDREN_END)
            if not process.at_work_in(os.path.realpath(self.data)):
                os.remove(lock)

    def prepare(self):
        account = _account()
        if not self.instance.options.get("postgres_data"):
            self.instance.set_option("postgres_data", _place(self.instance, account))
        if os.path.exists(os.path.join(self.data, "postgresql.conf")):
            self._clear_after_kill()
            return
        shutil.rmtree(self.data, ignore_errors=True)
        os.makedirs(self.data, mode=0o700)
        password = f"{self.data}.password"
        with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
            file.write(self.instance.secret(password_name(SUPERUSER)))
        if account:
            os.chown(self.data, account.pw_uid, account.pw_gid)
            os.chown(password, account.pw_uid, account.pw_gid)
        initdb = os.path.join(os.path.dirname(self.program), "initdb")
        arguments = ["--pgdata", self.data, "--username", SUPERUSER, "--pwfile", password, "--auth", "scram-sha-256"]
        arguments += ["--encoding", "UTF8", "--locale", "C", "--no-sync"]
        try:
            install.run(
                [initdb, *arguments], "initdb cannot make the cluster", timeout=120, cwd="/", **process.run_as(account)
            )
        except ServiceError:
            # A partially created cluster must not be used.
            shutil.rmtree(self.data, ignore_errors=True)
            raise
        finally:
            os.remove(password)

    def command(self):
        settings = {
            "listen_addresses": ports.HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 60,
            "shared_buffers": "64MB",
        }
        argv = [self.program, "-D", self.data]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return argv, bare_environment(), _account(), "/"

    def psql(self, arguments, database="postgres"):
        """The command line and environment of psql, as the superuser."""
        program = install.tool("psql", "postgresql-client", PROGRAMS)
        address = ["--host", ports.HOST, "--port", str(self.port), "--username", SUPERUSER, "--dbname", database]
        return [program, *address, *arguments], bare_environment(
            PGPASSWORD=self.instance.secret(password_name(SUPERUSER))
        )

    def check(self):
        if not ports.answers(self.port):
            raise NotReady(f"nothing listens on port {self.port}")
        self.make_databases(DATABASES)

    def make_databases(self, names):
        """Creates missing databases, each with a role of the same name; raises NotReady on failure."""
        # On stdin, since arguments are visible in the process list.
        wanted = [CREATE.format(name=name, password=self.instance.secret(password_name(name))) for name in names]
        argv, environment = self.psql(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"])
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(argv, input="".join(wanted), env=environment, timeout=30, check=False, **streams)
        if done.returncode != 0:
            raise NotReady(done.stdout.strip()[-500:])

    def url(self, database, driver="postgresql"):
        """The URL of a database, with its owner's password."""
        return (
            f"{driver}://{database}:{self.instance.secret(password_name(database))}@{ports.HOST}:{self.port}/{database}"
        )

    def describe(self):
        databases = {
            name: {"user": name, "password_file": self.instance.secret_file(password_name(name))} for name in DATABASES
        }
        return {
            "host": ports.HOST,
            "port": self.port,
            "superuser": SUPERUSER,
            "superuser_password_file": self.instance.secret_file(password_name(SUPERUSER)),
            "databases": databases,
        }

    def environment(self):
        return {
            "PGHOST": ports.HOST,
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGPASSWORD": self.instance.secret(password_name(SUPERUSER)),
            "PGDATABASE": "postgres",
        }


def password_name(user):
    """The name of the file that holds a user's password."""
    return f"postgres-{user}-password"


def _account():
    """The account that runs it: as root the packaged account or nobody, since PostgreSQL refuses root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceError("postgres refuses to run as root, and there is neither an account postgres nor nobody")


def _place(instance, account):
    """The folder of the cluster: in the instance's folder, unless its account cannot access that (as in root's home)."""
    if account is None:
        return os.path.join(instance.make("postgres"), "data")
    parent = instance.make("postgres", mode=0o711)
    reached = subprocess.run(["test", "-x", parent], check=False, **process.run_as(account))
    if reached.returncode != 0:
        parent = tempfile.mkdtemp(prefix="weir-postgres-", dir="/var/tmp")
        os.chmod(parent, 0o711)
        places.say(
            f"    postgres: the account {account.pw_name} cannot reach {instance.folder}: its data is in {parent}"
        )
    return os.path.join(parent, "data")


def remove_data(instance):
    """Removes a cluster outside of the instance's folder."""
    data = instance.options.get("postgres_data")
    if data and not data.startswith(instance.folder + os.sep):
        shutil.rmtree(os.path.dirname(data), ignore_errors=True)
