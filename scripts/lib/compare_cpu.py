"""CPU time per request in two builds of weir: compare_cpu.py OTHER_WEIR RELEASE_FOLDER PAIRS FRAMES...

Both run throughout. In each pair of measurements one build and then the other is under load for two seconds. The result is the median of the
pairs' ratios, since the speed of the machine changes from minute to minute.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

# No bytecode in the checkout.
sys.dont_write_bytecode = True
import weir_process  # noqa: E402

BUNDLE = pathlib.Path(__file__).resolve().parents[2] / "models/fish/1"
READY_S = 60
STOP_S = 60
LOAD_S = 2


class Server:
    """`weir serve` with the default bundle, an otherwise empty configuration, and its own folder."""

    def __init__(self, weir, port, folder):
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log"
        # The folder has no weir.toml, and settings of a deployment in the environment are not passed on.
        kept = ("HOME", "PATH", "ORT_DYLIB_PATH", "LD_LIBRARY_PATH", "TMPDIR")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment["WEIR__MODEL__BUNDLE"] = str(BUNDLE)
        command = [weir, "serve", "--listen", f"127.0.0.1:{port}", "--data-dir", folder / "data"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)

    def wait_until_ready(self):
        try:
            ready = weir_process.wait_until_ready(self.process, self.url, READY_S)
        except TimeoutError:
            ready = False
        if not ready:
            sys.exit(f"error: weir did not become ready:\n{self.log.read_text()[-2000:]}")

    def milliseconds(self, rig, frames, report):
        """CPU time of the process per answered request."""
        load = [rig, "load", "--url", self.url + "/predict", "--frames", frames, "--duration", str(LOAD_S)]
        load += ["--warmup", "0.3", "--pid", str(self.process.pid), "--json", report]
        subprocess.run(load, stdout=subprocess.DEVNULL, check=True)
        usage = json.loads(report.read_text())["usage"]
        if not usage["ok"]:
            sys.exit(f"error: {self.url} answered no request within {LOAD_S} s")
        return usage["cpu_s"] / usage["ok"] * 1e3

    def stop(self):
        try:
            weir_process.stop(self.process, STOP_S)
        except TimeoutError as error:
            print(f"error: {error}", file=sys.stderr)


def compare(builds, rig, pairs, frames, folder):
    servers = []
    try:
        for index, weir in enumerate(builds):
            servers.append(Server(weir, 18200 + index, pathlib.Path(tempfile.mkdtemp(dir=folder))))
        for server in servers:
            server.wait_until_ready()
            server.milliseconds(rig, frames, folder / "report.json")
        times = ([], [])
        for pair in range(pairs):
            for index in (0, 1) if pair % 2 == 0 else (1, 0):
                times[index].append(servers[index].milliseconds(rig, frames, folder / "report.json"))
    finally:
        for server in servers:
            server.stop()
    ratios = [new / other for other, new in zip(*times)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    other, new = (statistics.median(build) for build in times)
    print(f"| {frames} | {other:.2f} ms | {new:.2f} ms | {middle:.3f} | {low:.3f} to {high:.3f} |", flush=True)


def main(other, release, pairs, *frames):
    release = pathlib.Path(release)
    print("| frames | other | this | ratio | quartiles |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="weir-compare-") as folder:
        for kind in frames:
            compare((other, release / "weir"), release / "weir-rig", max(int(pairs), 2), kind, pathlib.Path(folder))


main(*sys.argv[1:])
