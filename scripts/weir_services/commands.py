# The commands: up, down, stopping and starting one server, status, and the servers' tools.
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys

from . import compose, fleet, kafka, places, ports, postgres, process
from .errors import ServiceError
from .instance import Instance


def up(options):
    if not sys.platform.startswith("linux"):
        raise ServiceError(f"the servers run natively on Linux only, not on {sys.platform}", "Use compose.yaml.")
    instance = Instance(options.dir)
    names = fleet.known(options.only) if options.only else list(fleet.DEPLOYED)
    with instance.locked():
        first = not instance.options
        _settle(instance, options)
        running = [name for name in names if instance.running(name)]
        missing = [name for name in names if name not in running]
        if options.owner:
            _own(instance, options.owner, fresh=first or not instance.recorded())
        for name in missing:
            # Remains of a crashed server would occupy its port or its data.
            fleet.stop_one(instance, name)
        instance.save()
        if missing:
            places.say(f"==> starting {', '.join(missing)} in {instance.folder}")
            fleet.Start(instance, missing).run()
        set_up = [name for name in fleet.KINDS if name in running + missing or name in instance.options["set_up"]]
        instance.options["set_up"] = set_up
        instance.save()
        fleet.write_description(instance, set_up)
    if not missing:
        places.say(f"{', '.join(running)}: already running in {instance.folder}")
    places.say(f"Addresses: {instance.path('services.json')}   Shell: . {instance.path('env')}")


def compose_files(options):
    """Sets an instance up for compose.yaml: its credentials, certificates and Kafka's configuration."""
    instance = Instance(options.dir or os.path.join(places.cache(), "services", "compose"))
    with instance.locked():
        _settle(instance, argparse.Namespace(redis_tls=False, max_message_bytes=None, ports="fixed"))
        instance.options["set_up"] = list(fleet.DEPLOYED)
        instance.save()
        variables = compose.write(instance)
        fleet.write_description(instance, instance.options["set_up"])
    places.say(f"Start them: docker compose --env-file {variables} up --wait")


def _settle(instance, options):
    """Stores the given options; the others are not changed."""
    known = {"redis_tls": False, "max_message_bytes": 20 << 20, "set_up": [], **instance.options}
    if options.redis_tls and not known["redis_tls"] and instance.running("redis"):
        raise ServiceError("redis runs without TLS", "Stop it first: scripts/services stop redis")
    known["redis_tls"] = known["redis_tls"] or options.redis_tls
    if options.max_message_bytes:
        wanted = kafka.message_bytes(options.max_message_bytes)
        if wanted != known["max_message_bytes"] and instance.running("kafka"):
            raise ServiceError(
                f"kafka runs with at most {known['max_message_bytes']} bytes per message",
                "Stop it first: scripts/services stop kafka",
            )
        known["max_message_bytes"] = wanted
    instance.options = known
    instance.settle_ports(ports.WELL_KNOWN, options.ports)


def _own(instance, pid, fresh):
    """Adds an owner process: the servers stop after the last of their owners. Instances without owners are not affected."""
    started = process.started(pid)
    if started is None:
        raise ServiceError(f"--owner {pid}: there is no such process")
    if fresh:
        instance.owners = []
    elif not instance.owners:
        return
    instance.owners.append([pid, started])
    instance.save()
    if fresh:
        command = [sys.executable, places.MAIN, "watch", "--dir", instance.folder]
        with open(instance.log("watch"), "ab") as log:
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")


def down(options):
    instance = Instance(options.dir)
    if not os.path.isdir(instance.folder):
        places.say(f"nothing was started in {instance.folder}")
        return
    with instance.locked():
        stopped = fleet.stop_all(instance)
        instance.owners = []
        instance.save()
        if options.remove:
            postgres.remove_data(instance)
            shutil.rmtree(instance.folder)
    places.say(f"stopped {', '.join(stopped)}" if stopped else f"nothing was running in {instance.folder}")


def stop(options):
    with _existing(options).locked() as instance:
        number = signal.SIGKILL if options.kill else None
        if not fleet.stop_one(instance, _name(instance, options), number):
            places.say(f"{options.name} was not running")


def start(options):
    with _existing(options).locked() as instance:
        name = _name(instance, options)
        if instance.running(name):
            places.say(f"{name} is already running")
            return
        fleet.stop_one(instance, name)
        fleet.Start(instance, [name]).run()


def pause(options):
    _signalled(options, process.pause)


def resume(options):
    _signalled(options, process.resume)


def _signalled(options, act):
    with _existing(options).locked() as instance:
        name = _name(instance, options)
        if not instance.running(name):
            raise ServiceError(f"{name} is not running in {instance.folder}")
        act(instance.process(name))


def status(options):
    """One line per server; the exit status is 1 unless all that were set up are running."""
    instance = _existing(options)
    whole = True
    for name in instance.options["set_up"]:
        one = fleet.server(instance, name)
        running = instance.running(name)
        whole = whole and running
        state = f"running, pid {instance.process(name).pid}" if running else "stopped"
        print(f"{name:<8} {one.port:>5}  {state}")
    return 0 if whole and instance.options["set_up"] else 1


def env(options):
    instance = _existing(options)
    print(fleet.environment_text([fleet.server(instance, name) for name in instance.options["set_up"]]), end="")


def _existing(options):
    instance = Instance(options.dir)
    instance.read()
    if not instance.options.get("set_up"):
        raise ServiceError(f"nothing was started in {instance.folder}", "Start it: scripts/services up")
    return instance


def _name(instance, options):
    if options.name not in instance.options["set_up"]:
        raise ServiceError(
            f"{options.name!r} was not set up in {instance.folder}",
            f"There: {', '.join(instance.options['set_up'])}",
        )
    return options.name


KAFKA_TOOLS = {
    "console-producer": ("org.apache.kafka.tools.ConsoleProducer", ("--topic",)),
    "console-consumer": ("org.apache.kafka.tools.consumer.ConsoleConsumer", ("--topic",)),
    "topics": ("org.apache.kafka.tools.TopicCommand", ()),
    "groups": ("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", ()),
    "configs": ("kafka.admin.ConfigCommand", ()),
}


def kafka_tool(options):
    """Replaces this process with one of Kafka's tools."""
    main, before = KAFKA_TOOLS[options.command]
    broker = fleet.server(_with(options, "kafka"), "kafka")
    broker.install()
    argv = broker.admin(main, *([*before, options.topic] if before else []), *options.arguments)
    os.execv(argv[0], argv)


def redis_cli(options):
    argv, environment = fleet.server(_with(options, "redis"), "redis").cli(options.arguments)
    os.execve(argv[0], argv, environment)


def psql(options):
    argv, environment = fleet.server(_with(options, "postgres"), "postgres").psql(options.arguments, options.database)
    os.execve(argv[0], argv, environment)


def _with(options, name):
    options.name = name
    instance = _existing(options)
    _name(instance, options)
    return instance


def describe(options):
    """services.json on stdout."""
    instance = _existing(options)
    names = instance.options["set_up"]
    print(json.dumps({name: fleet.server(instance, name).describe() for name in names}, indent=1))
