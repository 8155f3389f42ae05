#!/usr/bin/env python3
"""Serves the images that upstream's critest pulls, made from Debian's packages: busybox, nginx, and a setuid program.

usage: registry.py PORT PACKAGES    PACKAGES is a folder with the .deb files that suite-critest downloads
"""
import gzip
import hashlib
import http.server
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

STAGING = "k8s-staging-cri-tools"
PASSWD = b"""root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
default-user:x:1000:1000::/:/bin/sh
"""
GROUP = b"""root:x:0:
www-data:x:33:
nogroup:x:65534:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
"""
NGINX = """daemon off;
pid /var/run/nginx.pid;
error_log /dev/stderr;
events {}
http {
  access_log off;
  server { listen PORT; location / { root /www; index index.html; } }
}
"""
EUID = """#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", geteuid()); return 0; }
"""


class Layer:
    """A file system in the making."""

    def __init__(self) -> None:
        self.raw = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.raw, mode="w", format=tarfile.PAX_FORMAT)
        self.made: set[str] = set()

    def entry(self, path: str, kind: bytes, mode: int, content: bytes = b"", target: str = "") -> None:
        """Adds one thing, and the directories above it."""
        parent = str(pathlib.PurePosixPath(path).parent)
        if parent not in (".", "/") and parent not in self.made:
            self.entry(parent, tarfile.DIRTYPE, 0o755)
        if path in self.made:
            return
        self.made.add(path)
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.size, info.linkname = kind, mode, len(content), target
        self.tar.addfile(info, io.BytesIO(content))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Adds a file."""
        self.entry(path, tarfile.REGTYPE, mode, content)

    def library(self, root: pathlib.Path) -> None:
        """Adds the shared libraries of an unpacked package."""
        for found in sorted(p for top in ("lib", "lib64", "usr/lib") for p in (root / top).rglob("*")):
            name = str(found.relative_to(root))
            if not re.search(r"\.so(\.|$)", found.name) or "/gconv/" in name or "/ossl-modules/" in name:
                continue
            if found.is_symlink():
                self.entry(name, tarfile.SYMTYPE, 0o777, target=str(found.readlink()))
            elif found.is_file():
                self.file(name, found.read_bytes(), 0o755)

    def done(self) -> bytes:
        """The archive."""
        self.tar.close()
        return self.raw.getvalue()


class Images:
    """Blobs by digest, manifests by name and reference."""

    def __init__(self, packages: pathlib.Path) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], bytes] = {}
        self.packages = packages

    def unpacked(self, package: str, folder: str) -> pathlib.Path:
        """A package's files."""
        found = next(self.packages.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", found, folder], check=True)
        return pathlib.Path(folder)

    def base(self) -> Layer:
        """A system with busybox, one file per command as in the image that the tests were written for."""
        layer = Layer()
        layer.entry("tmp", tarfile.DIRTYPE, 0o1777)
        for name in ("dev", "proc", "sys", "root", "var/run", "var/log", "etc"):
            layer.entry(name, tarfile.DIRTYPE, 0o755)
        layer.file("etc/passwd", PASSWD)
        layer.file("etc/group", GROUP)
        for package in ("libc6", "libsmartcols1", "util-linux", "libproc2-0", "procps"):
            with tempfile.TemporaryDirectory() as folder:
                root = self.unpacked(package, folder)
                layer.library(root)
                # What Debian's busybox has not.
                for program in ("usr/bin/ipcs", "usr/bin/pgrep"):
                    if (root / program).is_file():
                        layer.file(program, (root / program).read_bytes(), 0o755)
        with tempfile.TemporaryDirectory() as folder:
            busybox = self.unpacked("busybox", folder) / "bin/busybox"
            layer.file("bin/busybox", busybox.read_bytes(), 0o755)
            names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
        for name in names.split():
            layer.entry(f"bin/{name}", tarfile.LNKTYPE, 0o755, target="bin/busybox")
        return layer

    def web(self, port: int) -> Layer:
        """The same with nginx."""
        layer = self.base()
        for package in ("nginx", "libpcre2-8-0", "libssl3", "libcrypt1", "zlib1g"):
            with tempfile.TemporaryDirectory() as folder:
                root = self.unpacked(package, folder)
                layer.library(root)
                if package == "nginx":
                    layer.file("usr/sbin/nginx", (root / "usr/sbin/nginx").read_bytes(), 0o755)
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            layer.entry(f"var/lib/nginx/{name}", tarfile.DIRTYPE, 0o755)
        layer.entry("var/log/nginx", tarfile.DIRTYPE, 0o755)
        layer.file("etc/nginx/nginx.conf", NGINX.replace("PORT", str(port)).encode())
        layer.file("www/index.html", b"<title>Welcome to nginx!</title>\n")
        return layer

    def escalating(self) -> Layer:
        """A program that says whom it runs as, and belongs to root with the setuid bit."""
        layer = self.base()
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "nnp"
            subprocess.run(["gcc", "-static", "-o", program, "-x", "c", "-"], input=EUID.encode(), check=True)
            layer.file("usr/local/bin/nnp", program.read_bytes(), 0o4755)
        return layer

    def blob(self, content: bytes) -> tuple[str, int]:
        """Keeps a blob."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest, len(content)

    def image(self, raw: bytes, command: list[str], user: str, *names: str) -> None:
        """Makes an image; its names tell it from others."""
        packed, size = self.blob(gzip.compress(raw, 1, mtime=0))
        config = {
            "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {"Cmd": command, "User": user, "Labels": {"name": names[0]}, "Env": ["PATH=/usr/sbin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest()]},
        }
        digest, length = self.blob(json.dumps(config).encode())
        oci = "application/vnd.oci.image"
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json",
            "config": {"mediaType": f"{oci}.config.v1+json", "digest": digest, "size": length},
            "layers": [{"mediaType": f"{oci}.layer.v1.tar+gzip", "digest": packed, "size": size}],
        }).encode()
        for name in names:
            repository, tag = name.split(":")
            self.manifests[repository, tag] = manifest
            self.manifests[repository, "sha256:" + hashlib.sha256(manifest).hexdigest()] = manifest

    def fill(self) -> None:
        """Makes what the suite names."""
        shell, e2e = ["sh"], "e2e-test-images"
        base = self.base().done()
        self.image(base, shell, "", f"{e2e}/busybox:1.29-2", f"{e2e}/busybox:1.29-4")
        nginx = ["/usr/sbin/nginx", "-c", "/etc/nginx/nginx.conf"]
        web = self.web(80).done()
        self.image(web, nginx, "", f"{e2e}/nginx:1.14-2")
        # The suite looks for the name of this one in what it prints.
        self.image(web, ["sh", "-c", "echo httpd; exec " + " ".join(nginx)], "", f"{e2e}/httpd:2.4.39-4")
        hostnet = f"{STAGING}/hostnet-nginx-amd64"
        self.image(self.web(12003).done(), nginx, "", f"{hostnet}:latest")
        self.image(self.escalating().done(), ["/usr/local/bin/nnp"], "", f"{e2e}/nonewprivs:1.3")
        self.image(base, ["sleep", "1000000"], "", "pause:3.9")
        users = {
            "user-uid": "1002", "user-username": "www-data", "user-uid-group": "1003:10",
            "user-username-group": "www-data:www-data", "predefined-group": "1000", "latest": "",
        }
        for name, user in users.items():
            self.image(base, shell, user, f"{STAGING}/test-image-{name}:latest")
        self.image(base, shell, "", f"{STAGING}/test-image-tag:test")
        self.image(base, shell, "", f"{STAGING}/test-image-tag:all")
        for number in range(1, 4):
            self.image(base, shell, "", f"{STAGING}/test-image-{number}:latest")
        self.image(base, shell, "", *(f"{STAGING}/test-image-tags:{n}" for n in range(1, 4)))


def main() -> None:
    """Serves until killed."""
    images = Images(pathlib.Path(sys.argv[2]))
    images.fill()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Pulls of the distribution protocol."""

        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Silence."""

        def do_GET(self) -> None:
            """Answers with a manifest or a blob."""
            found, kind = None, "application/octet-stream"
            path = self.path.split("?")[0]
            if path == "/v2/":
                found, kind = b"{}", "application/json"
            elif match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
                found, kind = images.manifests.get(match.groups()), "application/vnd.oci.image.manifest.v1+json"
            elif match := re.fullmatch(r"/v2/.+/blobs/(.+)", path):
                found = images.blobs.get(match[1])
            body = found if found is not None else b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}'
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if found is not None and path != "/v2/":
                self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(body).hexdigest())
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


main()
