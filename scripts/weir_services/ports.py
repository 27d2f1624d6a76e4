# Loopback ports: well-known ones, free ones, and the program that uses a port.
import os
import random
import socket

from .errors import ServiceError

# A port of the default instance; "free" picks others.
WELL_KNOWN = {
    "kafka": 9091,
    "kafka_controller": 19091,
    "redis": 6379,
    "redis_tls": 6380,
    "s3": 9000,
    "postgres": 5433,
    "mlflow": 5000,
    "mlflow29": 5029,
}
# Below the range of ephemeral ports, so that the port of a stopped server stays free.
FREE = range(20000, 32000)
HOST = "127.0.0.1"


def is_free(port):
    with socket.socket() as probe:
        # As servers do: a port that only has connections in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def pick_free(taken):
    for port in random.sample(FREE, 200):
        if port not in taken and is_free(port):
            return port
    raise ServiceError(f"no free port found between {FREE.start} and {FREE.stop}")


def demand(name, port):
    """Fails with the name of the program if the port is in use."""
    if not is_free(port):
        raise ServiceError(
            f"port {port} of {name} is taken by {holder(port)}",
            "Stop that program yourself, or start the services on other ports: scripts/services up --ports free",
        )


def answers(port):
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def holder(port):
    """The program that listens on a port, as far as this user may see."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rsplit(":", 1)[1], 16) == port}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            for handle in os.listdir(f"/proc/{entry}/fd"):
                link = os.readlink(f"/proc/{entry}/fd/{handle}")
                if link.startswith("socket:[") and link[8:-1] in inodes:
                    with open(f"/proc/{entry}/comm", encoding="utf-8") as file:
                        return f"{file.read().strip()} (pid {entry})"
        except OSError:
            continue
    return "another program"
