"""The whole path on one machine: generated doodles, ingest, training, evaluation, HTTP. `make demo` runs it.

Each step prints the command that does the same on real drawings.
"""

import json
import logging
import os
import shutil
import socket
import sys
import time
import urllib.request
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

from sketchray.cluster import quiet_ray
from sketchray.haproxy import ENVIRONMENT
from sketchray.strokes import Int16Array, to_record, to_strokes

if TYPE_CHECKING:
    from sketchray.recipe import TrainConfig

HERE = Path(".demo")
SEED = 7
PER_CLASS = 600
UNSEEN = 1_000_000  # index of doodles that are not in the data set
DEMO = {"num_epochs": 4, "batch_size": 64}
COLUMNS, ROWS = 24, 10  # of the drawing in characters; each is 2 by 4 dots


def dots(points: Int16Array) -> str:
    """Returns a drawing as lines of Braille characters."""
    grid = [[0] * COLUMNS for _ in range(ROWS)]
    strokes = to_strokes(points)
    largest = max(int(stroke.max()) for stroke in strokes) or 1
    for stroke in strokes:
        for (x0, y0), (x1, y1) in pairwise(stroke):
            steps = int(max(abs(x1 - x0), abs(y1 - y0))) + 1
            for step in range(steps + 1):
                x = (x0 + (x1 - x0) * step / steps) / largest * (2 * COLUMNS - 1)
                y = (y0 + (y1 - y0) * step / steps) / largest * (4 * ROWS - 1)
                column, row = int(x), int(y)
                bit = (0x01, 0x02, 0x04, 0x40, 0x08, 0x10, 0x20, 0x80)[(column % 2) * 4 + row % 4]
                grid[row // 4][column // 2] |= bit
    return "\n".join("".join(chr(0x2800 + cell) for cell in line).rstrip("\u2800") for line in grid).strip("\n")


def free_port() -> int:
    """Returns a TCP port of loopback that nothing listens on, and that none gets who asks the kernel for any.

    Between Ray's range for workers (10002 to 19999) and what kernels give out (from 32768): Ray's own gRPC servers ask
    for any, and would now and then take the port of a dashboard or a service that is still starting.
    """
    for port in SystemRandom().sample(range(20_000, 30_000), 100):  # tests that run side by side seed `random` alike
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("none of 100 ports of loopback between 20000 and 29999 is free; stop what listens there")


def isolate_serve() -> None:
    """Lets the Serve of a cluster that this process starts next run beside others on the machine, and stop soon."""
    os.environ.update(ENVIRONMENT)  # as serve_config.yaml has it
    # A replica that stops waits so long for HAProxy to leave it alone (Ray's default is 30 s). At 0, a request that is
    # on its way is cut off now and then, and HAProxy answers 500.
    os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "2"
    for name in ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP"):
        os.environ[f"RAY_SERVE_{name}_PORT"] = str(free_port())


def say(title: str, command: str) -> None:
    """Prints a step and the command that does it."""
    print(f"\n\033[1m{title}\033[0m\n  $ {command}", flush=True)


def main() -> None:
    """Runs the demo in a Ray cluster of its own, and stops that."""
    started = time.perf_counter()
    isolate_serve()
    quiet_ray()
    logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    import ray
    from ray import serve

    from sketchray.evaluation import evaluate
    from sketchray.ingest import ingest
    from sketchray.service import Settings, build
    from sketchray.sources import open_source
    from sketchray.training import train

    shutil.rmtree(HERE, ignore_errors=True)
    data, runs = str(HERE / "doodles"), str(HERE / "runs")
    ray.init(address="local", num_cpus=max(2, os.cpu_count() or 2), log_to_driver=True)
    try:
        say(
            "Ingest generated doodles (synthetic: ten geometric classes)",
            f"python jobs/ingest.py --format doodles --per-class {PER_CLASS} --seed {SEED} --out {data}",
        )
        report = ingest(open_source(None, "doodles", per_class=PER_CLASS, seed=SEED), data, seed=SEED)
        print(f"  {report['drawings']:,} drawings of {report['classes']} classes, {report['splits']}")

        say(
            "Train with DDP on two workers",
            f"python jobs/train.py --data {data} --storage-path {runs} --name doodles --num-workers 2 "
            f"--preset conv1d --num-epochs {DEMO['num_epochs']} --batch-size {DEMO['batch_size']}",
        )
        run = train(demo_config(), data=data, storage_path=runs, name="doodles", num_workers=2)["run"]

        say(
            "Evaluate on drawings it has not seen",
            f"python jobs/evaluate.py --checkpoint {runs}/doodles --data {data} --split test",
        )
        result = evaluate(run, data, split="test").result
        early = ", ".join(f"{share:.0%} after {percent} % of the points" for percent, share in result["early"].items())
        print(f"  top-1 {result['top1']:.1%} on {result['drawings']} drawings; {early}")

        say("Serve it", "serve run serve_config.yaml")
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(build(Settings(checkpoint=run)), name="sketchray", route_prefix="/")
        classify(port)
        print(
            f"\nDone in {time.perf_counter() - started:.0f} s. "
            "`make serve` serves the model of 345 real classes: draw at http://127.0.0.1:8000/"
        )
        if result["top1"] < 0.95:
            sys.exit(f"error: top-1 {result['top1']:.1%} is not above 95 %; the demo's training is broken")
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def demo_config() -> "TrainConfig":
    """Returns the fastest recipe, shortened to what ten easy classes need."""
    from sketchray.recipe import RECIPES

    return RECIPES["conv1d"].model_copy(update=DEMO)


def classify(port: int) -> None:
    """Asks the service about a doodle and prints its answer."""
    from sketchray import doodles

    points = doodles.draw("star", UNSEEN, SEED)
    body = json.dumps({"drawing": to_record(points), "top_k": 3}).encode()
    url = f"http://127.0.0.1:{port}/v1/classify"
    say(
        "Ask it over HTTP what this is",
        f"curl {url} -H 'content-type: application/json' -d '{{\"drawing\": [[[x...], [y...]]]}}'",
    )
    print("\n" + "\n".join(f"    {line}" for line in dots(points).splitlines()) + "\n")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        predictions = json.load(response)["predictions"]
    for guess in predictions:
        bar = "\u2588" * round(30 * guess["probability"])
        print(f"    {guess['label']:<10} {guess['probability']:6.1%} {bar}")


if __name__ == "__main__":
    main()
