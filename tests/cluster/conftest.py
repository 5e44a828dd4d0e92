"""Three Ray nodes on hosts of their own, with token authentication and an S3 server, for all the tests here."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hosts import Host, Network, check_namespaces
from submitting import submit


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Four hosts: a head, two workers, and one outside the cluster, which has the S3 server."""
    check_namespaces()
    with Network(4) as network:
        network.give_token()
        yield network


@pytest.fixture(scope="session")
def head(network: Network) -> Host:
    """The head of the cluster; `h2` and `h3` are its workers."""
    head, *workers = network.hosts[:3]
    network.start_s3(network.hosts[3])
    head.start_ray(cpus=0)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda worker: worker.start_ray(head, cpus=2), workers))
    return head


@pytest.fixture(scope="session")
def workers(network: Network, head: Host) -> list[Host]:
    """The two workers of the cluster."""
    return network.hosts[1:3]


@pytest.fixture(scope="session")
def client(network: Network) -> Host:
    """A host that is no node of the cluster."""
    return network.hosts[3]


@pytest.fixture(scope="session")
def data(client: Host, head: Host) -> str:
    """Doodles on S3, by an ingest that was submitted."""
    out = "s3://sketchray/data"
    flags = ["--format", "doodles", "--per-class", "60", "--num-shards", "4", "--out", out]
    result = submit(client, head.address, "python", "jobs/ingest.py", *flags).result
    assert result["drawings"] == 600
    return out
