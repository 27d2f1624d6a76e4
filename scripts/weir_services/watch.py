# Stops an instance when its owner processes have ended: a killed test run leaves nothing behind.
import os
import time

from . import fleet, places, process
from .instance import Instance

EVERY = 1.0


def watch(options):
    """Runs until the owners have ended, or the instance is no longer watched."""
    instance = Instance(options.dir)
    while os.path.isdir(instance.folder):
        instance.read()
        if any(process.started(pid) == started for pid, started in instance.owners):
            time.sleep(EVERY)
            continue
        with instance.locked():
            # An owner may have been added while this waited for the lock.
            if any(process.started(pid) == started for pid, started in instance.owners):
                continue
            stopped = fleet.stop_all(instance) if instance.owners else []
            instance.owners = []
            instance.save()
        places.say(f"the owners are gone: stopped {', '.join(stopped) or 'nothing'}")
        return
