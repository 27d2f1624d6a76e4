# The command line of scripts/services.
import argparse
import signal
import sys

from . import commands, places, watch
from .errors import ServiceError
from .fleet import KINDS
from .ports import WELL_KNOWN

EPILOG = """Servers: kafka, redis, s3, postgres, mlflow; only if named: mlflow29, an old version. Arguments of a server's tool follow its command:
  scripts/services console-consumer fish-classification-results --from-beginning
  scripts/services topics --describe"""


def parser():
    main = argparse.ArgumentParser(
        prog="scripts/services", description="The servers for tests and demos, on loopback.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    common = argparse.ArgumentParser(add_help=False)
    text = "the instance's folder (default: $WEIR_CACHE/services/default; of compose-files: .../services/compose)"
    common.add_argument("--dir", help=text)
    of = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, run, text):
        one = of.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        one.set_defaults(run=run)
        return one

    one = command("up", commands.up, "start the servers and wait until they serve")
    one.add_argument("--only", metavar="NAMES", help="a comma-separated subset: kafka,redis,s3")
    one.add_argument("--ports", choices=("fixed", "free"), help=f"fixed (default): {_listed()}; free: any")
    one.add_argument("--redis-tls", action="store_true", help="Redis with TLS on a second port")
    one.add_argument("--max-message-bytes", metavar="N", help="largest message of the requests topic (20971520)")
    one.add_argument("--owner", type=int, metavar="PID", help="stop the servers when this process has ended")
    one = command("down", commands.down, "stop what was started")
    one.add_argument("--remove", action="store_true", help="also delete the instance's folder with its data")
    for name, run, text in (
        ("stop", commands.stop, "stop one server"),
        ("start", commands.start, "start a stopped one: same port, same data"),
        ("pause", commands.pause, "freeze one: its port stays open, nothing answers"),
        ("resume", commands.resume, "let a frozen one go on"),
    ):
        one = command(name, run, text)
        one.add_argument("name", help=", ".join(KINDS))
        if name == "stop":
            one.add_argument("--kill", action="store_true", help="with SIGKILL, without time to write data")
    command("status", commands.status, "what runs; exit status 1 unless all does")
    command("env", commands.env, "shell lines with the deployment's variables, secrets included")
    command("describe", commands.describe, "addresses and file paths as JSON, no secret")
    for name in commands.KAFKA_TOOLS:
        one = command(name, commands.kafka_tool, f"Kafka's own {name} tool, as the deployment's user")
        if commands.KAFKA_TOOLS[name][1]:
            one.add_argument("topic")
    command("compose-files", commands.compose_files, "credentials, certificates and configuration for compose.yaml")
    command("redis-cli", commands.redis_cli, "redis-cli on this Redis")
    one = command("psql", commands.psql, "psql on this PostgreSQL, as its superuser")
    one.add_argument("--database", default="postgres", help="airflow, mlflow or postgres (the default)")
    command("watch", watch.watch, "(started by up --owner)")
    return main


def _listed():
    return ", ".join(f"{name} {port}" for name, port in WELL_KNOWN.items())


# Commands whose further arguments belong to the tool that they run.
PASSING_ON = {*commands.KAFKA_TOOLS, "redis-cli", "psql"}


def main():
    options, rest = parser().parse_known_args()
    if rest and options.command not in PASSING_ON:
        parser().error(f"unexpected: {' '.join(rest)}")
    options.arguments = rest
    # A terminated start stops the servers that it began, like an interrupted one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if options.command != "compose-files":
            options.dir = options.dir or places.default_dir()
        return options.run(options)
    except (ServiceError, OSError) as error:
        places.say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        places.say("interrupted")
        return 130
