"""Servers for programs in a guest, on addresses that the loopback interface gets.

One name server; HTTP, and HTTPS by an authority of its own, with a repository of git, one
of packages, an index for pip and a registry for npm; WebSocket; gRPC; PostgreSQL; a greeting
as of SSH; an echo by TCP. What a client may do is told by the value of a secret, which is in
the variable VALUE.

    python3 servers.py DIRECTORY

writes `ca.pem` there and `up` on standard output, and ends when standard input does.
"""

import base64
import glob
import hashlib
import http.server
import io
import json
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile

NETWORK = "10.209.113."
RESOLVER = "127.209.113.1"
# Each host has an address of its own.
HOSTS = {
    "api.test": 1,
    "open.test": 2,
    "mirror.test": 3,
    "ssh.test": 4,
    "raw.test": 5,
    "evil.test": 6,
    "db.test": 7,
    "grpc.test": 8,
}
VALUE = os.environ["VALUE"]
DATA = b"".join(b"%08d" % number for number in range(1 << 17))


def run(*words, **options):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **options)


def certificates():
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    quiet = {"stderr": subprocess.DEVNULL}
    run("openssl", "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem",
        "-days", "30", "-subj", "/CN=authority of the servers", **quiet)
    run("openssl", "req", *curve, "-keyout", "server.key", "-out", "server.csr",
        "-subj", "/CN=api.test", **quiet)
    with open("extensions", "w") as file:
        file.write("subjectAltName=" + ",".join("DNS:" + host for host in HOSTS))
    run("openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-CAcreateserial", "-days", "20", "-extfile", "extensions", "-out", "server.pem", **quiet)


GIT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@api.test",
    "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@api.test",
}


def repository():
    run("git", "init", "--quiet", "--initial-branch=main", "work", env=GIT)
    with open("work/data", "wb") as file:
        file.write(DATA)
    run("git", "-C", "work", "add", "data", env=GIT)
    run("git", "-C", "work", "commit", "--quiet", "-m", "first", env=GIT)
    run("git", "clone", "--quiet", "--bare", "work", "git/repo.git", env=GIT)
    run("git", "-C", "git/repo.git", "config", "http.receivepack", "true", env=GIT)


def wheel():
    """A package for pip, as a file with a name."""
    info = "demo-1.0.dist-info/"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("demo.py", "ANSWER = 42\n")
        file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        file.writestr(info + "WHEEL",
                      "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(info + "RECORD",
                      "".join(info + name + ",,\n" for name in ("METADATA", "WHEEL", "RECORD"))
                      + "demo.py,,\n")
    return archive.getvalue()


WHEEL = wheel()


def tarball():
    """A package for npm."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        for name, content in [("package.json", b'{"name": "demo", "version": "1.0.0"}'),
                              ("index.js", b"module.exports = 42\n")]:
            member = tarfile.TarInfo("package/" + name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return archive.getvalue()


TARBALL = tarball()
ABOUT_TARBALL = {"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {
    "name": "demo", "version": "1.0.0", "dist": {
        "tarball": "https://api.test/npm/demo/-/demo-1.0.0.tgz",
        "integrity": "sha512-" + base64.b64encode(hashlib.sha512(TARBALL).digest()).decode(),
    }}}}
PACKAGES = b"""Package: demo-of-apt
Version: 1.0
Architecture: all
Maintainer: a <a@api.test>
Filename: ./demo-of-apt.deb
Size: 1
SHA256: 0000000000000000000000000000000000000000000000000000000000000000
Description: nothing

"""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told_to_continue = False

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        self.told_to_continue = True
        return super().handle_expect_100()

    def granted(self):
        """By which credentials the client may do what it wants to; with none, nothing."""
        kind, _, rest = self.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer" and rest == VALUE:
            return "bearer"
        if kind == "Basic" and base64.b64decode(rest).decode() == "user:" + VALUE:
            return "basic"
        return None

    def pieces(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        left = int(self.headers.get("Content-Length", 0))
        while left and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)
            yield piece

    def answer(self, status, body, kind="text/plain", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def tell(self, **what):
        self.answer(200, json.dumps(what).encode(), "application/json")

    def do(self):
        path, _, query = self.path.partition("?")
        if path == "/ws":
            return self.websocket()
        if path.startswith("/git/"):
            return self.git(path.removeprefix("/git"), query)
        digest, length = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            length += len(piece)
        credentials = self.headers.get("Authorization", "")
        if path == "/upload":
            self.tell(sha256=digest.hexdigest(), length=length, waited=self.told_to_continue)
        elif path == "/reflect":
            self.answer(200, credentials.encode())
        elif path == "/data":
            self.data()
        elif path.startswith("/simple/") and self.granted() != "basic":
            self.answer(401, b"", headers=[("WWW-Authenticate", 'Basic realm="index"')])
        elif path == "/simple/demo/":
            name = "demo-1.0-py3-none-any.whl"
            digest = hashlib.sha256(WHEEL).hexdigest()
            page = f'<!DOCTYPE html><a href="{name}#sha256={digest}">{name}</a>'
            self.answer(200, page.encode(), "text/html")
        elif path.endswith(".whl"):
            self.answer(200, WHEEL, "application/zip")
        elif path.startswith("/npm/") and self.granted() != "bearer":
            self.answer(401, b"", headers=[("WWW-Authenticate", "Bearer")])
        elif path == "/npm/demo":
            self.tell(**ABOUT_TARBALL)
        elif path == "/npm/demo/-/demo-1.0.0.tgz":
            self.answer(200, TARBALL, "application/octet-stream")
        elif path == "/apt/./Packages":
            self.answer(200, PACKAGES)
        elif path == "/who":
            self.tell(host=self.headers.get("Host"), method=self.command,
                      granted=self.granted(), with_credentials=bool(credentials))
        else:
            self.answer(404, b"nothing is here\n")

    do_GET = do_HEAD = do_POST = do_PUT = do

    def data(self):
        unit, _, given = self.headers.get("Range", "").partition("=")
        if unit != "bytes":
            return self.answer(200, DATA, headers=[("Accept-Ranges", "bytes")])
        first, _, last = given.partition("-")
        first, last = int(first), min(int(last or len(DATA) - 1), len(DATA) - 1)
        span = f"bytes {first}-{last}/{len(DATA)}"
        self.answer(206, DATA[first:last + 1], headers=[("Content-Range", span)])

    def git(self, path, query):
        body = b"".join(self.pieces())
        user = self.granted()
        if not user and self.headers.get("Host") == "api.test":
            return self.answer(401, b"", headers=[("WWW-Authenticate", 'Basic realm="git"')])
        environment = GIT | {
            "GIT_PROJECT_ROOT": os.path.abspath("git"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": self.client_address[0],
            "REMOTE_USER": user or "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment,
                              stdout=subprocess.PIPE)
        # It may be killed by SIGPIPE, after its answer, when the service of a push that only
        # asks whether it may has ended before all of its question was passed on.
        if done.returncode not in (0, 141):
            done.check_returncode()
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        self.answer(status, body, headers.pop("Content-Type", "text/plain"), headers.items())

    def websocket(self):
        if self.granted() != "bearer":
            return self.answer(401, b"")
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 0x7f
            if length == 126:
                length, = struct.unpack(">H", self.rfile.read(2))
            elif length == 127:
                length, = struct.unpack(">Q", self.rfile.read(8))
            mask = self.rfile.read(4) * (length // 4 + 1)
            body = bytes(a ^ b for a, b in zip(self.rfile.read(length), mask))
            size = bytes([length]) if length < 126 else b"\x7e" + struct.pack(">H", length)
            self.wfile.write(head[:1] + size + body)
            if head[0] & 0xf == 8:
                return


class Http(http.server.ThreadingHTTPServer):
    tls = None

    def finish_request(self, request, client):
        # Here, in a thread of the connection, and not where connections are accepted.
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client)

    def handle_error(self, request, client):
        # A client that goes away is no error here.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client)


class Greeting(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"SSH-2.0-of_the_test\r\n")
        # The client's own greeting, and nothing of what it wants then.
        self.request.makefile("rb").readline()


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Names(socketserver.BaseRequestHandler):
    def handle(self):
        question, answering = self.request
        at, labels = 12, []
        while length := question[at]:
            labels.append(question[at + 1:at + 1 + length].decode())
            at += length + 1
        kind, = struct.unpack(">H", question[at + 1:at + 3])
        number = HOSTS.get(".".join(labels))
        answer = b""
        if number and kind == 1:
            address = socket.inet_aton(NETWORK + str(number))
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + address
        head = question[:2] + (b"\x81\x80" if number else b"\x81\x83") + b"\0\1"
        head += struct.pack(">HHH", 1 if answer else 0, 0, 0)
        answering.sendto(head + question[12:at + 5] + answer, self.client_address)


def database():
    """PostgreSQL with the password `of_the_test`; it runs as no root."""
    programs, = glob.glob("/usr/lib/postgresql/*/bin")[-1:]
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    os.mkdir("sockets")
    with open("password", "w") as file:
        file.write("of_the_test\n")
    run(*user, programs + "/initdb", "--pgdata=database", "--username=guest", "--no-sync",
        "--auth=scram-sha-256", "--pwfile=password", "--encoding=UTF8", "--no-locale")
    # Their paths are from the directory of the data.
    server = {
        "listen_addresses": NETWORK + str(HOSTS["db.test"]),
        "unix_socket_directories": os.path.abspath("sockets"),
        "ssl": "on",
        "ssl_cert_file": os.path.abspath("server.pem"),
        "ssl_key_file": os.path.abspath("server.key"),
        "fsync": "off",
    }
    with open("database/postgresql.auto.conf", "a") as file:
        for name, value in server.items():
            file.write(f"{name} = '{value}'\n")
    with open("database/pg_hba.conf", "w") as file:
        file.write("hostssl all guest all scram-sha-256\n")
    run(*user, programs + "/pg_ctl", "--pgdata=database", "--wait", "--timeout=300",
        "--log=database.log", "start")
    return lambda: run(*user, programs + "/pg_ctl", "--pgdata=database", "--mode=immediate",
                       "stop")


def grpc():
    # Python's own of the distribution has the library.
    address = NETWORK + str(HOSTS["grpc.test"]) + ":443"
    server = subprocess.Popen(["/usr/bin/python3", "grpc_echo.py", address],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if server.stdout.readline() != b"up\n":
        sys.exit("the server of gRPC did not come up")
    return lambda: server.communicate()


def main():
    os.chdir(sys.argv[1])
    run("ip", "link", "set", "lo", "up")
    # The loopback interface has all addresses of its networks.
    subprocess.run(["ip", "addr", "add", NETWORK + "1/24", "dev", "lo"],
                   stderr=subprocess.DEVNULL)
    certificates()
    repository()
    ends = [database(), grpc()]

    def at(host, port):
        return (NETWORK + str(HOSTS[host]), port)

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    servers = [
        socketserver.UDPServer((RESOLVER, 53), Names),
        socketserver.ThreadingTCPServer(at("ssh.test", 22), Greeting),
        socketserver.ThreadingTCPServer(at("raw.test", 5432), Echo),
        # Nothing but the policy keeps a guest from these.
        socketserver.ThreadingTCPServer(at("evil.test", 22), Greeting),
        socketserver.ThreadingTCPServer(at("raw.test", 5433), Echo),
    ]
    for host in ["api.test", "open.test", "mirror.test", "evil.test"]:
        encrypted = Http(at(host, 443), Handler)
        encrypted.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        encrypted.tls.load_cert_chain("server.pem", "server.key")
        servers += [Http(at(host, 80), Handler), encrypted]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("up", flush=True)
    sys.stdin.read()
    for end in ends:
        end()
    subprocess.run(["ip", "addr", "del", NETWORK + "1/24", "dev", "lo"])


main()
