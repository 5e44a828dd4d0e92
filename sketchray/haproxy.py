"""What HAProxy, which stands in front of the replicas, and Serve are told: the controller's environment. No Ray.

`serve_config.yaml` and `deploy/kuberay/serve.yaml` have the same, and a test holds them together.
"""

BUSY = '{\\"detail\\":\\"too much load; come again\\"}'

# Ray has no setting for these lines. It puts the name of the algorithm into the section `defaults` of HAProxy's file as
# it is, so lines behind it get there too; a test lets HAProxy itself read what becomes of it.
LINES = (
    "leastconn",
    # What a replica may work on at a time. More wait here, where it costs nothing, and not for long: a queue only makes
    # everyone wait, and a refusal in a replica takes the time of an answer.
    "default-server maxconn 32",
    "timeout queue 60ms",
    # A request goes to a replica when it is whole, or 16 KiB of it are there: a slow client holds no place.
    "option http-buffer-request",
    "timeout http-request 10s",
    # Ray makes this a 500.
    f'http-error status 503 content-type application/json string "{BUSY}" hdr Retry-After 1',
)
ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n".join(LINES),
    # A classification may be asked twice: what a dying replica did not answer goes to another one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    # HAProxy itself is looked at so often, and started anew after three bad answers (Ray's default is each 10 s).
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    # A replica's routes run in the event loop that gets the requests, which saves two hops; the model has a thread.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # A connection on which nothing comes for so long is closed (Ray's default is an hour).
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}
