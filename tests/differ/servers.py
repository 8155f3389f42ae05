"""Starts upstream's API server with its etcd, or Coracle's, on loopback ports; both are empty and end with the block."""
import contextlib
import pathlib
import ssl
import subprocess
import time
import urllib.error
import urllib.request

TOKEN = "admintoken"
READY_SECONDS = 90


@contextlib.contextmanager
def process(log, *command):
    """A process with its output in a file; ended when the block ends."""
    with open(log, "wb") as out:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_ready(url, child, log):
    end = time.monotonic() + READY_SECONDS
    context = ssl._create_unverified_context()
    while time.monotonic() < end:
        if child.poll() is not None:
            raise SystemExit(f"the server ended: see {log}")
        request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(request, context=context, timeout=5):
                return
        time.sleep(0.3)
    raise SystemExit(f"the server is not ready after {READY_SECONDS} s: see {log}")


def tokens(folder):
    file = folder / "tokens.csv"
    file.write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    return file


def key_pair(folder):
    """A key that signs service accounts' tokens."""
    key = folder / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    return key


@contextlib.contextmanager
def upstream(binaries, folder, port):
    """Upstream's kube-apiserver as GOLDEN.md has it; uses `port` and the two ports after it."""
    binaries, folder = pathlib.Path(binaries), pathlib.Path(folder)
    client, peer, key = f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port + 2}", key_pair(folder)
    etcd = process(
        folder / "etcd.log", binaries / "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync",
            "--quota-backend-bytes=4294967296",
        "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    )
    server = process(
        folder / "kube-apiserver.log", binaries / "kube-apiserver", "--etcd-servers", client, "--secure-port", port,
            "--bind-address=127.0.0.1",
        "--cert-dir", folder / "certs", "--token-auth-file", tokens(folder), "--authorization-mode=Node,RBAC",
            "--anonymous-auth=true",
        "--allow-privileged=true", "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file", key, "--service-account-signing-key-file", key,
    )
    with etcd, server as child:
        wait_ready(f"https://127.0.0.1:{port}", child, folder / "kube-apiserver.log")
        yield f"https://127.0.0.1:{port}"


@contextlib.contextmanager
def coracle(binary, folder, port):
    folder = pathlib.Path(folder)
    log = folder / "coracle.log"
    server = process(log, binary, "apiserver", "--secure-port", port, "--data-dir", folder / "data",
        "--token-auth-file", tokens(folder))
    with server as child:
        wait_ready(f"https://127.0.0.1:{port}", child, log)
        yield f"https://127.0.0.1:{port}"
