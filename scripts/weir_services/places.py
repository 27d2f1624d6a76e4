# Paths: the checkout, the cache, the pins; and progress messages.
import configparser
import os
import sys
import threading

from .errors import ServiceError

SCRIPTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MAIN = os.path.join(SCRIPTS, "services")
_SAYING = threading.Lock()


def cache():
    """The same folder as scripts/lib/env.sh: this program is also run by tests, without it."""
    base = os.environ.get("WEIR_CACHE")
    if not base:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", ""), ".cache")
        if not os.path.isabs(base):
            raise ServiceError("neither WEIR_CACHE, XDG_CACHE_HOME nor HOME is set", "Set WEIR_CACHE to a folder.")
        base = os.path.join(base, "weir")
    os.makedirs(base, exist_ok=True)
    return os.path.realpath(base)


def default_dir():
    return os.path.join(cache(), "services", "default")


def pins(section):
    parser = configparser.ConfigParser()
    with open(os.path.join(SCRIPTS, "services.ini"), encoding="utf-8") as file:
        parser.read_file(file)
    return parser[section]


def say(line):
    """Prints progress to stderr: stdout is for the output of commands. Locked, since servers start in parallel."""
    with _SAYING:
        print(line, file=sys.stderr, flush=True)
