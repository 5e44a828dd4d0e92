"""The Ray cluster: connecting to it, its size, what workers and trials may reserve of it, what its nodes share.

Two workers of one CPU each on a cluster of two hang for ever: nothing is left to read the data with. The sum that
avoids it is done here, for training and sweeps alike. A folder of one node that is none of another's costs a run later,
so the nodes are asked before anything runs.
"""

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from sketchray.errors import Error, RunError, first_line
from sketchray.storage import open_filesystem

logger = logging.getLogger(__name__)

DATA_CPUS = 1.0  # kept free for Ray Data's reading tasks
ANSWER_S = 120.0  # in which a node starts a process and answers
PROBE = ".sketchray-probe-"


@dataclass(frozen=True)
class Cluster:
    """What a cluster has, or may grow to: CPUs and GPUs."""

    cpus: float
    gpus: float


def quiet_ray(level: str = "WARNING") -> None:
    """Keeps Ray's reports of each step it takes out of this process's log, and of those it starts.

    Args:
        level: what still gets through. At `CRITICAL` not even the traceback that Ray Data logs before it raises.
    """
    os.environ["RAY_DATA_LOG_LEVEL"] = level  # read when ray.data is imported
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(level)


def connect() -> Cluster:
    """Connects to the Ray cluster (`RAY_ADDRESS`, one that runs on this machine, or a new one), if that is still to do.

    Returns:
        Its size, grown as far as its configuration allows.
    """
    import ray
    from ray._private.state import state  # no public call tells how far a cluster may grow

    if not ray.is_initialized():
        ray.init()
    now = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = state.get_max_resources_from_cluster_config() or {}
    return Cluster(max(now.get("CPU", 0.0), most.get("CPU", 0)), max(now.get("GPU", 0.0), most.get("GPU", 0)))


def cpus_per_worker(cluster: Cluster, num_workers: int, *, use_gpu: bool = False) -> float:
    """Returns what each of `num_workers` may reserve: at most one CPU, and a whole one stays free.

    Raises:
        RunError: the cluster is too small; the message has the sum.
    """
    if num_workers < 1:
        raise RunError(f"--num-workers {num_workers}: must be at least 1")
    if num_workers > cluster.cpus:
        raise RunError(
            f"--num-workers {num_workers}: more workers than the cluster has CPUs ({cluster.cpus:g}); "
            f"ask for at most {int(cluster.cpus)}, or add nodes"
        )
    if use_gpu and num_workers > cluster.gpus:
        raise RunError(
            f"--num-workers {num_workers} --use-gpu: more workers than the cluster has GPUs ({cluster.gpus:g}); "
            f"ask for at most {int(cluster.gpus)}, add nodes, or leave out --use-gpu"
        )
    free = cluster.cpus - DATA_CPUS
    if free <= 0:
        raise RunError(
            f"the cluster has {cluster.cpus:g} CPU: training needs part of one beside the {DATA_CPUS:g} that "
            f"Ray Data reads with; start Ray with --num-cpus 2"
        )
    # Ray counts in 1/10,000 CPU; rounding down keeps the sum within the cluster.
    return min(1.0, int(free / num_workers * 1000) / 1000)


def node_cpus() -> int:
    """Returns the CPUs of this process's node, as Ray counts them: in a container, the container's, not the host's."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == own)  # type: ignore[no-untyped-call]
    return min(os.cpu_count() or 1, int(node["Resources"].get("CPU", 0)) or 1)


def tell_if_busy(cpus: float, gpus: float = 0.0) -> None:
    """Says what a run is going to wait for, where other work (a service, another run) holds what it needs now."""
    import ray

    free = ray.available_resources()  # type: ignore[no-untyped-call]
    for kind, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > free.get(kind, 0.0):
            logger.warning(
                "waiting for %g %ss, of which %g are free: the rest is held by other work on this cluster, or by "
                "nodes still to start; `ray status` shows it",
                needed,
                kind,
                free.get(kind, 0.0),
            )


@dataclass(frozen=True)
class Question:
    """What a node is asked: whether it finds what the job finds.

    Attributes:
        read: flag, path or URI, and what the job sees there, as `look` tells it.
        written: flag, directory or URI, and the name of a file that the job has written there.
    """

    read: tuple[tuple[str, str, str], ...]
    written: tuple[tuple[str, str, str], ...]

    def answer(self) -> tuple[str, str, str] | None:
        """Returns flag, path and what is wrong there, seen from where this is called, or None; leaves nothing."""
        for flag, uri, expected in self.read:
            found = look(uri)
            if found != expected:
                return flag, uri, found if found.startswith("cannot") else "has another one, or none"
        for flag, uri, name in self.written:
            filesystem, path = open_filesystem(uri)
            own = f"{path}/{name}-{uuid.uuid4().hex}"
            doing = "read"
            try:
                with filesystem.open_input_file(f"{path}/{name}") as file:
                    file.read()
                doing = "write"
                with filesystem.open_output_stream(own) as stream:
                    stream.write(b"")
                filesystem.delete_file(own)
            except FileNotFoundError:
                return flag, uri, "does not see what is written there"
            except OSError as error:
                return flag, uri, f"cannot {doing} there ({first_line(error)})"
        return None


def look(uri: str) -> str:
    """Returns what tells one file or directory from another (sizes, names), or why it cannot be seen."""
    try:
        filesystem, path = open_filesystem(uri)
        info = filesystem.get_file_info(path)
        if info.type != pafs.FileType.Directory:
            return f"{info.type.name} {info.size}"
        entries = filesystem.get_file_info(pafs.FileSelector(path))
    except (OSError, Error) as error:
        return f"cannot read it ({first_line(error)})"
    listing = sorted((entry.base_name, entry.size) for entry in entries if not entry.base_name.startswith("."))
    return hashlib.sha256(repr(listing).encode()).hexdigest()


def check_shared(read: Mapping[str, Sequence[str]], written: Mapping[str, str]) -> None:
    """Checks that every node that works sees the same as this process. Where this is the only one, it costs nothing.

    Nodes that join later are not asked.

    Args:
        read: flags, and paths or URIs of files and directories.
        written: flags, and directories or URIs in which all must find what one writes; made if need be.

    Raises:
        RunError: a node does not; the message names it. Nothing is left behind.
    """
    connect()
    nodes = other_nodes()
    if not nodes:
        return
    looks = tuple((flag, uri, look(uri)) for flag, uris in read.items() for uri in uris)
    with contextlib.ExitStack() as stack:
        probes = tuple((flag, uri, stack.enter_context(_probe(flag, uri))) for flag, uri in written.items())
        for node, wrong in ask_nodes(nodes, Question(looks, probes)).items():
            if wrong is not None:
                flag, uri, what = wrong
                remedy = "name a directory that every node mounts at this path, or a bucket (s3://, gs://)"
                if "://" in uri:
                    remedy = "give every node access to it"
                raise RunError(f"{flag} {uri}: node {node} {what}; {remedy}")


def other_nodes() -> dict[str, str]:
    """Returns name and address of the nodes that work (a head without CPUs does not), by ID, without this one."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    nodes = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own)  # type: ignore[no-untyped-call]
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in nodes
        if node["Resources"].get("CPU") or node["Resources"].get("GPU")
    }


def ask_nodes(nodes: Mapping[str, str], question: Question) -> dict[str, tuple[str, str, str] | None]:
    """Returns each node's answer, by its name. A node that dies meanwhile is left out.

    Raises:
        RunError: a node does not answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(Question.answer)
    asked = {
        name: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(question)
        for node, name in nodes.items()
    }
    answers = {}
    for name, reference in asked.items():
        try:
            answers[name] = ray.get(reference, timeout=ANSWER_S)
        except GetTimeoutError as error:
            raise RunError(f"node {name}: no answer in {ANSWER_S:g} s; mend it, or stop it") from error
        except RayError as error:
            logger.warning("node %s: not asked what it sees (%s)", name, first_line(error))
    return answers


@contextlib.contextmanager
def _probe(flag: str, uri: str) -> Iterator[str]:
    """Writes a file into a directory, which is made if need be, and yields its name; in the end removes it.

    After an error the directories that were made go too, if they are empty.
    """
    filesystem, path = open_filesystem(uri)
    name = PROBE + uuid.uuid4().hex
    made = []
    above = path
    while above and filesystem.get_file_info(above).type == pafs.FileType.NotFound:
        made.append(above)
        above = above.rpartition("/")[0]
    try:
        filesystem.create_dir(path)
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(b"")
    except OSError as error:
        raise RunError(f"{flag} {uri}: cannot write there ({first_line(error)}); choose another place") from error
    try:
        yield name
    except BaseException:
        filesystem.delete_file(f"{path}/{name}")
        for directory in made:
            if not filesystem.get_file_info(pafs.FileSelector(directory)):
                filesystem.delete_dir(directory)
        raise
    filesystem.delete_file(f"{path}/{name}")
