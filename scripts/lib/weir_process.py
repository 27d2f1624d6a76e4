"""`weir serve` as the child process of a script: readiness, requests without a proxy, and its end."""

import subprocess
import time
import urllib.request

# The server is on loopback: a proxy from the environment must not come between.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def wait_until_ready(process, base, seconds):
    """True when the server at `base` is ready, False when its process ended first; TimeoutError when neither happens in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        try:
            DIRECT.open(base + "/health/ready", timeout=2).close()
            return True
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"weir was not ready after {seconds} s")


def stop(process, seconds):
    """Sends SIGTERM and waits for the end. After `seconds` the process is killed, and TimeoutError is raised."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise TimeoutError(f"weir did not end within {seconds} s of SIGTERM") from None
