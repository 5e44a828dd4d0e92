"""A cluster on three hosts takes nothing without the token: job API, dashboard, client port, a node."""

import pytest
from hosts import TOKEN, Host
from submitting import ask, submit

STRANGER = {"RAY_AUTH_MODE": "disabled", "HOME": "/nowhere"}
# Ray's own client does not tell what it was refused for, but tries again until its time is over. Without the ID of a
# client, who is let in is told that it is not found.
CALL = """
import grpc, sys
address, *token = sys.argv[1:]
method = grpc.insecure_channel(address).unary_unary("/ray.rpc.RayletDriver/ClusterInfo")
try:
    print("answer", method(b"", timeout=60, metadata=[("authorization", f"Bearer {word}") for word in token]))
except grpc.RpcError as error:
    print("refused", error.code().name)
"""

pytestmark = pytest.mark.timeout(600)


def test_without_the_token_all_is_refused(client: Host, head: Host) -> None:
    url = f"http://{head.address}:8265"
    for path in ("/api/jobs/", "/api/v0/nodes", "/nodes?view=summary"):
        assert ask(client, url + path, token=None)[0] == 401
        assert ask(client, url + path, token="0" * 64)[0] == 403
    submitted = submit(client, head.address, "touch", "/tmp/ran", environment=STRANGER)
    assert submitted.status == 1
    assert "Missing authentication token" in submitted.said
    assert not (head.folder / "tmp" / "ran").exists()

    assert client.run("python", "-c", CALL, f"{head.address}:10001").stdout == "refused UNAUTHENTICATED\n"


def test_with_the_token_a_job_runs_on_the_cluster(client: Host, head: Host, data: str) -> None:
    assert data == "s3://sketchray/data"  # an ingest, submitted from a host that is no node
    assert ask(client, f"http://{head.address}:8265/api/jobs/")[0] == 200
    friend = client.run("python", "-c", CALL, f"{head.address}:10001", TOKEN)
    assert friend.stdout == "refused NOT_FOUND\n"
