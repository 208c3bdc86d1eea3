"""Real applications with their own clients, by the agent and straight into the pods.

Each client does what its users do that a simple relay gets wrong: long idle phases, a second
connection that belongs to the first, ends in one direction, a protocol that has streams itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.conftest import INSIDE, SSH_KEY, Local
from tests.e2e import kit

HOST = "127.0.0.1"
SIZE = 16 << 20

Run = Callable[..., str]


def client(run: Run, name: str, port: str) -> None:
    """Run one of the clients in Python."""
    text = (Path(__file__).with_name("clients.py")).read_text()
    assert run("python3", "-", name, port, stdin=text).endswith("done\n")


@pytest.fixture
def scratch(root: Path) -> Path:
    """An empty folder in the image's root; `/tmp/scratch` for its programs."""
    folder = root / "tmp/scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# -- databases ---------------------------------------------------------------------------------


def test_psql(local: Local, run: Run) -> None:
    psql = ["psql", "-h", HOST, "-p", local.port("postgres"), "-U", "postgres", "-Atq"]
    assert run(*psql, "-c", "SELECT 6 * 7") == "42\n"
    rows = run(*psql, "-c", "SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
    assert len(rows) == 20_000 * 1_001
    script = "CREATE TABLE t (n int); COPY t FROM STDIN;\n" + "".join(f"{n}\n" for n in range(9999))
    assert run(*psql, stdin=script + "\\.\nSELECT sum(n) FROM t; DROP TABLE t;") == "49985001\n"


def test_psql_cancels_a_query(local: Local, root: Path, run: Run) -> None:
    words = ["psql", "-h", HOST, "-p", local.port("postgres"), "-U", "postgres", "-At", "-c"]
    query = "SELECT pg_sleep(200)"

    def runs() -> bool:
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{query}'"
        return run(*words, sql) == "1\n"

    with subprocess.Popen(
        [*INSIDE, str(root), *words, query], stderr=subprocess.PIPE, text=True
    ) as psql:
        try:
            kit.eventually(runs, "the query runs")
            # psql sends the cancel on a second connection, which has to reach the same server.
            psql.send_signal(signal.SIGINT)
            _, errors = psql.communicate(timeout=30)
        finally:
            psql.kill()
    assert "canceling statement due to user request" in errors


def test_pg_basebackup(local: Local, run: Run, scratch: Path) -> None:
    words = ["pg_basebackup", "-h", HOST, "-p", local.port("postgres"), "-U", "postgres"]
    run(*words, "-X", "stream", "-D", "/tmp/scratch/backup", "--checkpoint=fast")
    verify = "/usr/lib/postgresql/15/bin/pg_verifybackup"
    assert "successfully verified" in run(verify, "/tmp/scratch/backup")


def test_mariadb(local: Local, run: Run) -> None:
    words = ["mariadb", "-h", HOST, "-P", local.port("mariadb"), "-u", "app", "-N", "-B"]
    words += ["--max-allowed-packet=64M", "--skip-ssl"]
    assert run(*words, "-e", "SELECT 6 * 7") == "42\n"
    script = "CREATE DATABASE d; CREATE TABLE d.t (b LONGBLOB);"
    script += f"INSERT INTO d.t VALUES ('{'x' * SIZE}'); SELECT LENGTH(b), MD5(b) FROM d.t;"
    assert run(*words, stdin=script + "DROP DATABASE d;").startswith(f"{SIZE}\t")
    assert len(run(*words, "-e", f"SELECT REPEAT('y', {SIZE})")) == SIZE + 1


def test_redis(local: Local, run: Run) -> None:
    redis = ["redis-cli", "-h", HOST, "-p", local.port("redis")]
    assert run(*redis, "PING") == "PONG\n"
    commands = "".join(f"SET key{n} {n}\r\n" for n in range(20_000))
    assert "errors: 0, replies: 20000" in run(*redis, "--pipe", stdin=commands)
    assert run(*redis, "GET", "key19999") == "19999\n"
    benchmark = ["redis-benchmark", "-h", HOST, "-p", local.port("redis")]
    assert "requests per second" in run(*benchmark, "-n", "5000", "-c", "50", "-t", "get", "-q")


def test_etcd(local: Local, root: Path, run: Run) -> None:
    etcd = ["etcdctl", f"--endpoints=http://{HOST}:{local.port('etcd')}"]
    run("env", "ETCDCTL_API=3", *etcd, "put", "key", "value")
    assert run("env", "ETCDCTL_API=3", *etcd, "get", "key") == "key\nvalue\n"
    words = [*INSIDE, str(root), "env", "ETCDCTL_API=3", *etcd, "watch", "key", "--rev=1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        try:
            assert [watch.stdout.readline() for _ in range(3)] == ["PUT\n", "key\n", "value\n"]
            run("env", "ETCDCTL_API=3", *etcd, "del", "key")
            assert watch.stdout.readline() == "DELETE\n"
        finally:
            watch.terminate()


# -- messages ----------------------------------------------------------------------------------


def test_mqtt(local: Local, root: Path, run: Run) -> None:
    where = ["-h", HOST, "-p", local.port("mosquitto"), "-q", "2", "-t", f"a/{local.via}"]
    run("mosquitto_pub", *where, "-r", "-m", "kept")
    words = [*INSIDE, str(root), "mosquitto_sub", *where, "-C", "100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as subscriber:
        assert subscriber.stdout is not None
        try:
            assert subscriber.stdout.readline() == "kept\n"
            lines = [f"{number}\n" for number in range(1, 100)]
            run("mosquitto_pub", *where, "-l", stdin="".join(lines))
            assert list(subscriber.stdout) == lines
        finally:
            subscriber.terminate()


def test_nats(local: Local, run: Run) -> None:
    client(run, "nats", local.port("nats"))


def test_rabbitmq(local: Local, run: Run) -> None:
    client(run, "amqp", local.port("rabbitmq"))


# -- HTTP and its relatives --------------------------------------------------------------------


def test_grpc(local: Local, run: Run) -> None:
    client(run, "grpc", local.port("servers", 0))


def test_http2(local: Local, run: Run, scratch: Path) -> None:
    data = os.urandom(4 << 20)
    (scratch / "data").write_bytes(data)
    url = f"http://{HOST}:{local.port('servers', 1)}/"
    curl = ["curl", "-sS", "--http2-prior-knowledge", "--max-time", "60"]
    run(*curl, "--data-binary", "@/tmp/scratch/data", "-o", "/tmp/scratch/got", url)
    assert (scratch / "got").read_bytes() == data
    client(run, "http2", local.port("servers", 1))


def test_websocket(local: Local, run: Run) -> None:
    client(run, "websocket", local.port("servers", 2))


def test_server_sent_events(local: Local, root: Path) -> None:
    url = f"http://{HOST}:{local.port('servers', 1)}/events"
    words = [*INSIDE, str(root), "curl", "-sSN", "--max-time", "30", url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        assert [line for line in curl.stdout if line.strip()] == [f"data: {n}\n" for n in range(5)]
    assert curl.returncode == 0


def test_quic(local: Local, run: Run) -> None:
    if local.via == "direct":
        pytest.skip("UDP needs the agent")
    client(run, "quic", local.port("servers", protocol="udp"))


def test_dns(local: Local, run: Run) -> None:
    if local.via == "direct":
        pytest.skip("UDP needs the agent")
    name = "kubernetes.default.svc.cluster.local"
    for protocol, option in (("udp", "+notcp"), ("tcp", "+tcp")):
        words = ["dig", f"@{HOST}", "-p", local.port("dns", protocol=protocol), option, "+short"]
        assert re.fullmatch(r"[0-9.]+\n", run(*words, name))


# -- shells ------------------------------------------------------------------------------------


def ssh_options(local: Local) -> list[str]:
    port = ["-o", f"Port={local.port('ssh')}", "-i", str(SSH_KEY)]
    return [*port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]


def test_ssh(local: Local, run: Run) -> None:
    ssh = ["ssh", *ssh_options(local), f"root@{HOST}"]
    assert run(*ssh, "echo out; echo err >&2; exit 7", code=7) == "out\nerr\n"
    text = "x" * SIZE
    # The end of the input has to arrive, and the output to follow it.
    assert run(*ssh, "wc -c", stdin=text).strip() == str(SIZE)
    assert run(*ssh, "cat", stdin=text) == text


def test_scp_and_rsync(local: Local, run: Run, scratch: Path) -> None:
    data = os.urandom(SIZE)
    (scratch / "data").write_bytes(data)
    options = ssh_options(local)
    run("scp", *options, "/tmp/scratch/data", f"root@{HOST}:/tmp/data")
    run("scp", *options, f"root@{HOST}:/tmp/data", "/tmp/scratch/back")
    assert (scratch / "back").read_bytes() == data
    shell = f"ssh {' '.join(options)}"
    run("rsync", "-a", "-e", shell, "/tmp/scratch/", f"root@{HOST}:/tmp/tree/")
    (scratch / "data").write_bytes(data[:-1000] + bytes(1000))
    told = run("rsync", "-a", "--stats", "-e", shell, "/tmp/scratch/", f"root@{HOST}:/tmp/tree/")
    assert "Number of regular files transferred: 1\n" in told


def test_git(local: Local, run: Run, scratch: Path) -> None:
    ssh = f"GIT_SSH_COMMAND=ssh {' '.join(ssh_options(local))}"
    url = f"ssh://root@{HOST}:{local.port('ssh')}/root/repo.git"
    git = ["env", ssh, "git", "-c", "user.name=t", "-c", "user.email=t@example.test"]
    run(*git, "init", "-q", "/tmp/scratch/tree")
    (scratch / "tree/file").write_bytes(os.urandom(1 << 20))
    at = [*git, "-C", "/tmp/scratch/tree"]
    run(*at, "add", "file")
    run(*at, "commit", "-q", "-m", "add")
    run(*at, "push", "-q", "-f", url, f"HEAD:refs/heads/{local.via}")
    run(*git, "clone", "-q", "-b", local.via, url, "/tmp/scratch/clone")
    assert (scratch / "clone/file").read_bytes() == (scratch / "tree/file").read_bytes()


# -- debuggers, which serve one client at a time -----------------------------------------------


def test_debugpy(local: Local, run: Run) -> None:
    client(run, "debugpy", local.port("debugpy"))


def test_delve(local: Local, run: Run) -> None:
    words = ["dlv", "connect", f"{HOST}:{local.port('delve')}"]
    script = "break main.main\ncontinue\nnext\nexit\ny\n"
    told = run(*words, "--init", "/dev/null", stdin=script)
    assert "main.main" in told, told


# -- Kubernetes itself -------------------------------------------------------------------------


def test_kubectl_through_a_forwarded_api_server(local: Local, tmp_path: Path) -> None:
    if local.via == "direct":
        pytest.skip("no pod is behind this Service")
    words = ["kubectl", f"--server=https://{HOST}:{local.port('api')}"]
    words += ["--tls-server-name=kubernetes", "-n", "default"]

    def kubectl(*more: str) -> str:
        done = subprocess.run(
            [*words, *more], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "kubernetes" in kubectl("get", "services")
    watch = kubectl("get", "services", "--watch", "--request-timeout=2s")
    assert "kubernetes" in watch
