# Stops an instance when the processes that own it are gone: a killed test run leaves nothing behind.
import os
import time

from . import fleet, places, process
from .instance import Instance

EVERY = 1.0


def watch(options):
    """Runs until the owners are gone, or nobody wants the instance to be watched any more."""
    instance = Instance(options.dir)
    while os.path.isdir(instance.folder):
        instance.read()
        if any(process.started(pid) == started for pid, started in instance.owners):
            time.sleep(EVERY)
            continue
        with instance.locked():
            # An owner may have come while this waited for the lock.
            if any(process.started(pid) == started for pid, started in instance.owners):
                continue
            stopped = fleet.stop_all(instance) if instance.owners else []
            instance.owners = []
            instance.save()
        places.say(f"the owners are gone: stopped {', '.join(stopped) or 'nothing'}")
        return
