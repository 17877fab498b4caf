"""A server of HTTP and HTTPS at every address, for names below allowed.test and glob.test.

    python3 web.py DIRECTORY

writes `ca.pem` there, the authority of its certificates, and `up` on standard output; ends
when standard input does. Of each request it tells, in JSON, whom it was for, in which places
the values of secrets were (which are lines of the variable VALUES; of the second one
`PLACE:1`), its body with `*` for them, how it was framed, headers that name
a method, and the how manyth of its connection
it was. These are answered otherwise:

    /reflect    the credentials in a header, and in gzip if that may be, or a range of them
    /ranged     the same without the header, never in gzip
    /elsewhere  a Location with them
    /split      lines with the credentials, each in two chunks, split at each byte
    /say/N      value N
    /coded      with the credentials as a content coding
    /stream     each chunk of the request as one
    /record     whom requests were for since it was last asked, and the places of values
    /hints      a thousand heads of 1xx first
    /204, /304  a body that there must not be
    /two        a second response behind it
    /short      less than it says
    /fold       a head with a continued line
    /lengths    a head with two lengths
    /bomb       a gigabyte, in a megabyte of gzip
    /for-ever   a byte every second

Who is at the address that ends in 73 asks for a certificate; at 74 nobody speaks TLS, and at 75 connections are cut when the client has said the first of it. At the socket `callback`
requests are blocked that it is shown a value in, and those to /placeholder with one.
"""

import base64
import gzip
import http.server
import json
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse

VALUES = os.environ["VALUES"].split("\n")
RECORD = []

def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def request(name, names):
    run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", name + ".key", "-out", name + ".csr", "-subj", "/CN=" + name)
    with open(name + ".ext", "w") as file:
        file.write("subjectAltName=" + ",".join("DNS:" + one for one in names))


def certificate(name, names, *signed):
    request(name, names)
    signed = signed or ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    run("openssl", "x509", "-req", "-in", name + ".csr", "-days", "20",
        "-extfile", name + ".ext", "-out", name + ".pem", *signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name + ".pem", name + ".key")
    return context


def expired(name):
    """`openssl x509` takes no dates here: `openssl ca` does."""
    request(name, [name])
    with open("ca.cnf", "w") as file:
        file.write("[ca]\ndefault_ca=own\n[own]\nnew_certs_dir=.\ndatabase=index\nserial=serial\n"
                   "default_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n")
    open("index", "w").close()
    run("openssl", "ca", "-batch", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key",
        "-in", name + ".csr", "-out", name + ".pem", "-startdate", "20200101000000Z",
        "-enddate", "20200201000000Z", "-extfile", name + ".ext", "-rand_serial")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name + ".pem", name + ".key")
    return context


def contexts():
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=authority of the web")
    good = certificate("good", ["*.allowed.test", "*.glob.test"])
    by_itself = ("-signkey", "self.allowed.test.key")
    bad = {
        "expired.allowed.test": expired("expired.allowed.test"),
        "self.allowed.test": certificate("self.allowed.test", ["self.allowed.test"], *by_itself),
        "wrong.allowed.test": certificate("wrong.allowed.test", ["evil.test"]),
    }

    def choose(connection, name, _):
        connection.context = bad.get(name, good)

    good.sni_callback = choose
    # Whom it asks for a certificate, a context does not take from another.
    asking = certificate("client", ["client.allowed.test"])
    asking.load_verify_locations("ca.pem")
    asking.verify_mode = ssl.CERT_REQUIRED
    return good, asking


def values(text):
    """Which of the values are in a text, as they are or as credentials."""
    kind, _, rest = text.partition(" ")
    if kind == "Basic":
        text = base64.b64decode(rest, validate=True).decode()
    forms = [(value, urllib.parse.quote(value, safe="")) for value in VALUES]
    return [number for number, of in enumerate(forms) if any(form in text for form in of)]


def found(place, text):
    return [place + (":%d" % number if number else "") for number in values(text)]


def masked(text):
    for value in VALUES:
        text = text.replace(value, "*")
    return text


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    turn = 0

    def log_message(self, *_):
        pass

    def chunks(self):
        while length := int(self.rfile.readline() or b"0", 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()

    def head(self, status, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, piece):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def answer(self, body, *headers, status=200):
        self.head(status, ("Content-Length", str(len(body))), *headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def split(self, text):
        self.head(200, ("Transfer-Encoding", "chunked"))
        for at in range(1, len(text)):
            self.chunk(text[:at])
            self.chunk(text[at:] + b"\n")
        self.chunk(b"")

    def stream(self):
        self.head(200, ("Transfer-Encoding", "chunked"))
        for piece in self.chunks():
            self.chunk(masked(piece.decode("latin-1")).encode("latin-1"))
        self.chunk(b"")

    def do(self):
        self.turn += 1
        is_chunked = self.headers.get("Transfer-Encoding") == "chunked"
        seen = [one for name, text in self.headers.items() for one in found(name.lower(), text)]
        seen += found("target", self.path)
        if self.path == "/stream":
            RECORD.append((self.headers["Host"], seen))
            return self.stream()
        length = int(self.headers.get("Content-Length", 0))
        body = b"".join(self.chunks()) if is_chunked else self.rfile.read(length)
        seen += found("body", body.decode("latin-1"))
        credentials = self.headers.get("Authorization", "").encode()
        if self.path in ("/reflect", "/ranged"):
            return self.reflect(credentials)
        if self.path == "/elsewhere":
            location = b"https://evil.test/?" + credentials
            return self.answer(b"", ("Location", location.decode()), status=302)
        if self.path == "/split":
            return self.split(credentials)
        if self.path == "/coded":
            return self.answer(b"?", ("Content-Encoding", credentials.decode()))
        if self.path.startswith("/say/"):
            return self.answer(VALUES[int(self.path[5:])].encode())
        if self.path in HOSTILE:
            HOSTILE[self.path](self)
            self.close_connection = True
            return None
        if self.path == "/record":
            told, RECORD[:] = RECORD[:], []
            return self.answer(json.dumps(told).encode())
        RECORD.append((self.headers["Host"], seen))
        told = dict(host=self.headers["Host"], found=seen, turn=self.turn,
                    body=masked(body[:300].decode("latin-1")), target=masked(self.path),
                    framing="chunked" if is_chunked else length,
                    methods=[name for name in self.headers if "method" in name.lower()])
        self.answer(json.dumps(told).encode())

    def reflect(self, credentials):
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if first:
            part = credentials[int(first):int(last) + 1]
            of = "bytes %s-%s/%d" % (first, last, len(credentials))
            return self.answer(part, ("Content-Range", of), status=206)
        if self.path == "/ranged":
            return self.answer(credentials)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            return self.answer(gzip.compress(credentials), ("Content-Encoding", "gzip"))
        self.answer(credentials, ("X-Credentials", credentials.decode()))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do


def raw(data):
    return lambda handler: handler.wfile.write(data)


def bomb(handler):
    zeros = gzip.compress(bytes(1 << 20), 9)
    handler.head(200, ("Content-Encoding", "gzip"), ("Content-Length", str(len(zeros) << 10)))
    for _ in range(1 << 10):
        handler.wfile.write(zeros)


def for_ever(handler):
    handler.head(200, ("Transfer-Encoding", "chunked"))
    # Until nobody takes it.
    while True:
        handler.chunk(b".")
        handler.wfile.flush()
        time.sleep(1)


OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
# What a server says that means no good.
HOSTILE = {
    "/hints": raw(b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 1000 + HELLO),
    "/204": raw(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello" + HELLO),
    "/304": raw(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello" + HELLO),
    "/two": raw(HELLO + OK + b"Content-Length: 6\r\n\r\nhidden"),
    "/short": raw(OK + b"Content-Length: 50\r\n\r\nhello"),
    "/fold": raw(OK + b"X: a\r\n Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello"),
    "/lengths": raw(OK + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello"),
    "/bomb": bomb,
    "/for-ever": for_ever,
}


class Callback(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().decode()
        asked = json.loads(line)
        is_one = asked.get("path") == "/placeholder" and "SANDBOX_SECRET_" in line
        blocks = bool(values(line)) or is_one
        self.wfile.write(json.dumps(dict(action="block" if blocks else "allow")).encode() + b"\n")


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    tls = None

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "web", self.server_address[1]

    def finish_request(self, request, client):
        last = request.getsockname()[0].rpartition(".")[2]
        if last == "75" and request.recv(1):
            return
        if self.tls and last != "74":
            request = self.tls[last == "73"].wrap_socket(request, server_side=True)
        super().finish_request(request, client)

    def handle_error(self, request, client):
        # Whoever does not trust it goes away.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client)


def main():
    os.chdir(sys.argv[1])
    plain, encrypted = Server(("::", 80), Handler), Server(("::", 443), Handler)
    encrypted.tls = contexts()
    callbacks = socketserver.ThreadingUnixStreamServer("callback", Callback)
    for server in plain, encrypted, callbacks:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("up", flush=True)
    sys.stdin.read()


main()
