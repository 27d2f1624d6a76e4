# Redis: password, optionally TLS on a second port; without persistence, so that a stop loses its data.
import socket

from . import certificates, install, places, ports
from .errors import ServiceError
from .server import NotReady, Server, bare_environment

PASSWORD = "redis-password"


class Redis(Server):
    name = "redis"
    stop_within = 10.0

    @property
    def port_names(self):
        return ("redis", "redis_tls") if self.instance.options["redis_tls"] else ("redis",)

    def install(self):
        self.program = install.tool("redis-server", "redis-server")
        found = install.version_of([self.program, "--version"], r"v=([\d.]+)")
        minimum = places.pins("redis")["minimum"]
        if found < install.numbers(minimum):
            raise ServiceError(f"{self.program} is version {'.'.join(map(str, found))}: {minimum} or newer is needed")

    def prepare(self):
        lines = [
            f"bind {ports.HOST}",
            f"port {self.port}",
            f"requirepass {self.instance.secret(PASSWORD)}",
            "daemonize no",
            f'dir "{self.instance.make("redis")}"',
            # Clients must tolerate a Redis that loses its data: tests need this case.
            'save ""',
            "appendonly no",
        ]
        if self.instance.options["redis_tls"]:
            lines += [
                f"tls-port {self.instance.ports['redis_tls']}",
                f'tls-cert-file "{certificates.file(self.instance, "server.pem")}"',
                f'tls-key-file "{certificates.file(self.instance, "server.key")}"',
                f'tls-ca-cert-file "{certificates.file(self.instance, "ca.pem")}"',
                "tls-auth-clients no",
            ]
        self.instance.write("redis/redis.conf", "\n".join(lines) + "\n")

    def command(self):
        return [self.program, self.instance.path("redis", "redis.conf")], bare_environment(), None, "/"

    def check(self):
        try:
            with socket.create_connection((ports.HOST, self.port), timeout=2) as connection:
                connection.sendall(f"AUTH {self.instance.secret(PASSWORD)}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    block = connection.recv(256)
                    if not block:
                        break
                    answer += block
        except OSError as error:
            raise NotReady(str(error)) from error
        if answer != b"+OK\r\n+PONG\r\n":
            raise NotReady(f"answered {answer!r} to AUTH and PING")

    def describe(self):
        return {
            "host": ports.HOST,
            "port": self.port,
            "password_file": self.instance.secret_file(PASSWORD),
            "tls_port": self.instance.ports.get("redis_tls") if self.instance.options["redis_tls"] else None,
            "ca_file": certificates.file(self.instance, "ca.pem") if self.instance.options["redis_tls"] else None,
        }

    def environment(self):
        return {
            "REDIS_HOST": ports.HOST,
            "REDIS_PORT": str(self.port),
            "REDIS_PASSWORD": self.instance.secret(PASSWORD),
        }

    def cli(self, arguments):
        """The command line and environment of redis-cli on this server."""
        program = install.tool("redis-cli", "redis-tools")
        environment = bare_environment(REDISCLI_AUTH=self.instance.secret(PASSWORD))
        return [program, "-h", ports.HOST, "-p", str(self.port), *arguments], environment
