"""Load for the benchmarks of the service: real records, and wrk, which sends them."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Each thread of wrk walks through the records from another place.
SCRIPT = """
local records = {}
for line in io.lines("%s") do records[#records + 1] = line end
local next_thread, position = 0, 0
function setup(thread) thread:set("start", next_thread); next_thread = next_thread + 1 end
function init() position = start * 97 end
request = function()
    position = position %% #records + 1
    return wrk.format("POST", "/v1/classify", {["Content-Type"] = "application/json"}, records[position])
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw.

    Attributes:
        requests_per_s: answered with 2xx.
        p50_us, p99_us: of all answers.
        failed: other answers, and connections that broke.
    """

    requests_per_s: float
    p50_us: float
    p99_us: float
    failed: int


def read_records(directory: Path, count: int) -> list[str]:
    """Returns lines of ndjson, in turn from each class of a directory of simplified files."""
    files = sorted(directory.glob("*.ndjson"))
    if not files:
        raise SystemExit(f"{directory}: holds no *.ndjson; name a directory of simplified Quick, Draw! files")
    each = -(-count // len(files))
    heads = [path.read_text().splitlines()[:each] for path in files]
    return [line for lines in zip(*heads, strict=True) for line in lines][:count]


def write_script(records: list[str], folder: Path) -> Path:
    """Writes the Lua script that lets wrk send the records."""
    (folder / "records").write_text("\n".join(json.dumps(json.loads(record)) for record in records) + "\n")
    script = folder / "records.lua"
    script.write_text(SCRIPT % (folder / "records"))
    return script


def wrk(url: str, script: Path | None, *, connections: int, seconds: float) -> Load:
    """Runs wrk against a service."""
    command = ["wrk", "--latency", "--timeout", "30s", "-t", str(min(2, connections)), "-c", str(connections)]
    command += ["-d", f"{seconds:g}s", *(["-s", str(script)] if script else []), url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    total = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    bad = int(found[1]) if (found := re.search(r"Non-2xx or 3xx responses: (\d+)", text)) else 0
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return Load(
        requests_per_s=rate * (1 - bad / max(total, 1)),
        p50_us=_microseconds(text, "50%"),
        p99_us=_microseconds(text, "99%"),
        failed=bad + (sum(map(int, broken.groups())) if broken else 0),
    )


def _microseconds(text: str, share: str) -> float:
    number, unit = re.search(rf"{share}\s+([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]
