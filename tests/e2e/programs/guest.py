"""Programs as they are used, in a guest whose network is looked into.

Prints a line for each, `ok NAME` or `failed NAME: WHY`. Nothing is set for any of them but
what a guest has from the host; those that are said to be bare have not even variables.
"""

import asyncio
import hashlib
import json
import os
import socket
import subprocess

KEY = os.environ["KEY"]
BEARER = "Authorization: Bearer " + KEY
WORK = "/tmp/work"
DATA = b"".join(b"%08d" % number for number in range(1 << 17))


class Failed(Exception):
    pass


def expect(true, what):
    if not true:
        raise Failed(what)


def run(*words, status=0, bare=False, **options):
    """What a program prints, on both of its outputs."""
    environment = {"PATH": os.environ["PATH"], "HOME": WORK} if bare else os.environ | {
        "HOME": WORK, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=240, env=environment,
                          **({"stdin": subprocess.DEVNULL, "cwd": WORK} | options))
    output = done.stdout.decode(errors="replace")
    errors = done.stderr.decode(errors="replace")
    expect(done.returncode == status, f"{words[0]} {done.returncode}: {output} {errors}")
    return output if status == 0 else output + errors


def curl(*words, **options):
    return run("curl", "--silent", "--show-error", *words, **options)


def granted(output, by="bearer", method="GET"):
    """What the host told of a request."""
    told = json.loads(output)
    expect((told["granted"], told["method"]) == (by, method), output)


def refused(output, code):
    told = json.loads(output)
    expect(told["code"] == code and told["hint"], output)
    return told


CHECKS = []


def check(name):
    def add(does):
        CHECKS.append((name, does))
        return does
    return add


@check("curl, HTTP/1.1")
def _():
    output = curl("--http1.1", "-w", "%{http_version}", "-H", BEARER, "https://api.test/who")
    expect(output.endswith("1.1"), output)
    granted(output.removesuffix("1.1"))


@check("curl, HTTP/2")
def _():
    output = curl("--http2", "-w", "%{http_version}", "-H", BEARER, "https://api.test/who")
    expect(output.endswith("}2"), output)
    granted(output.removesuffix("2"))


@check("curl, HTTP without TLS: no value")
def _():
    output = curl("-H", BEARER, "http://api.test/who")
    granted(output, None)


@check("curl, bare")
def _():
    granted(curl("-H", BEARER, "https://api.test/who", bare=True))


@check("curl, Basic credentials")
def _():
    granted(curl("-u", "user:" + KEY, "https://api.test/who"), "basic")


@check("curl, upload of 100 MB that waits for 100 Continue")
def _():
    digest, piece = hashlib.sha256(), os.urandom(1_000_000)
    with open(WORK + "/upload", "wb") as file:
        for number in range(100):
            written = number.to_bytes(4, "big") + piece[4:]
            file.write(written)
            digest.update(written)
    output = curl("--http1.1", "--expect100-timeout", "60", "-H", "Expect: 100-continue",
                  "-T", "upload", "https://api.test/upload")
    told = json.loads(output)
    expect(told == {"sha256": digest.hexdigest(), "length": 100_000_000, "waited": True}, output)


@check("curl, upload by HTTP/2, of unknown length")
def _():
    with open(WORK + "/upload", "rb") as file:
        data = file.read(8_000_000)
    os.remove(WORK + "/upload")
    output = curl("--http2", "-T", "-", "https://api.test/upload", stdin=None, input=data)
    told = json.loads(output)
    expect(told["sha256"] == hashlib.sha256(data).hexdigest(), output)


@check("curl, a download that is resumed")
def _():
    curl("-r", "0-299999", "-o", "data", "https://api.test/data")
    expect(os.path.getsize(WORK + "/data") == 300_000, "the first part")
    curl("-C", "-", "-o", "data", "https://api.test/data")
    with open(WORK + "/data", "rb") as file:
        expect(file.read() == DATA, "the whole")


@check("curl, the value is taken out of responses")
def _():
    curl("-H", BEARER, "-o", "reflected", "https://api.test/reflect")
    with open(WORK + "/reflected") as file:
        reflected = file.read()
    expect(reflected.startswith("Bearer ") and len(reflected) > len("Bearer "), reflected)


@check("curl, a host that is not allowed")
def _():
    # Could not resolve host, which is said before a resolver would ask again.
    curl("--max-time", "10", "https://evil.test/", status=6)


@check("curl, the same by its address")
def _():
    for version in ["--http1.1", "--http2"]:
        output = curl(version, "-w", "%{http_code}", "--resolve", "evil.test:443:10.209.113.6",
                      "https://evil.test/")
        expect(output.endswith("403"), output)
        told = refused(output.removesuffix("403"), "host_not_allowed")
        expect("evil.test" in told["host"], output)


@check("curl, a rule that refuses")
def _():
    for version in ["--http1.1", "--http2"]:
        output = curl(version, "-w", "%{http_code}", "-d", "x=1", "https://api.test/denied/x")
        expect(output.endswith("403"), output)
        told = refused(output.removesuffix("403"), "rule_denied")
        expect(told["rule"] == "deny POST api.test/denied/**", output)
    # curl says so as it says of any server.
    curl("--fail", "-d", "x=1", "https://api.test/denied/x", status=22)


@check("curl, a placeholder for another host")
def _():
    refused(curl("-H", BEARER, "https://open.test/who"), "secret_leak")


@check("wget")
def _():
    granted(run("wget", "-qO-", "--header", BEARER, "https://api.test/who"))


@check("wget, bare")
def _():
    granted(run("wget", "-qO-", "--header", BEARER, "https://api.test/who", bare=True))


PYTHON = "import os; headers = {'Authorization': 'Bearer ' + os.environ['KEY']}\n"


def python(program, **options):
    return run("python3", "-c", PYTHON + program, **options)


@check("Python, urllib")
def _():
    granted(python("import urllib.request as of\n"
                   "asked = of.Request('https://api.test/who', headers=headers)\n"
                   "print(of.urlopen(asked).read().decode())"))


@check("Python, requests")
def _():
    granted(python("import requests\n"
                   "print(requests.get('https://api.test/who', headers=headers).text)"))


@check("Python, requests: many on one connection, and a stream")
def _():
    output = python(
        "import requests, hashlib\n"
        "of = requests.Session()\n"
        "for _ in range(20): assert of.get('https://open.test/who').json()['host'] == 'open.test'\n"
        "data = [b'%d' % number * 1000 for number in range(1000)]\n"
        "told = of.put('https://open.test/upload', data=iter(data)).json()\n"
        "print(told['sha256'] == hashlib.sha256(b''.join(data)).hexdigest())")
    expect(output == "True\n", output)


@check("Python, httpx, HTTP/2")
def _():
    output = python("import httpx\n"
                    "with httpx.Client(http2=True, headers=headers) as client:\n"
                    "    for _ in range(3): told = client.get('https://api.test/who')\n"
                    "    print(told.http_version); print(told.text)")
    version, _, told = output.partition("\n")
    expect(version == "HTTP/2", output)
    granted(told)


@check("node, fetch")
def _():
    granted(run("node", "-e",
                "const headers = {authorization: 'Bearer ' + process.env.KEY};"
                "fetch('https://api.test/who', {headers, method: 'POST', body: 'x'})"
                ".then(told => told.text()).then(console.log)"), method="POST")


@check("pip, with a token")
def _():
    index = f"https://user:{KEY}@api.test/simple/"
    run("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target",
        "packages", "--index-url", index, "demo")
    expect(os.path.exists(WORK + "/packages/demo.py"), "the package")


@check("npm, with a token")
def _():
    os.makedirs(WORK + "/of-npm", exist_ok=True)
    with open(WORK + "/of-npm/.npmrc", "w") as file:
        file.write("registry=https://api.test/npm/\n//api.test/npm/:_authToken=${KEY}\n")
    run("npm", "install", "demo", cwd=WORK + "/of-npm")
    output = run("node", "-e", "console.log(require('demo'))", cwd=WORK + "/of-npm")
    expect(output == "42\n", output)
    with open(WORK + "/of-npm/.npmrc", "w") as file:
        file.write("registry=https://api.test/npm/\n")
    output = run("npm", "view", "demo", cwd=WORK + "/of-npm", status=1)
    expect("E401" in output, output)


JAVA = """
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import javax.net.ssl.HttpsURLConnection;

class Who {
    public static void main(String[] given) throws Exception {
        var client = HttpClient.newHttpClient();
        for (var version : HttpClient.Version.values()) {
            var who = URI.create("https://api.test/who");
            var request = HttpRequest.newBuilder(who).version(version)
                .header("Authorization", given[0])
                .POST(HttpRequest.BodyPublishers.ofString("x".repeat(100000))).build();
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.version() + " " + answer.body());
        }
        var old = (HttpsURLConnection) new URL("https://api.test/who").openConnection();
        old.setRequestProperty("Authorization", given[0]);
        System.out.println("old " + new String(old.getInputStream().readAllBytes()));
    }
}
"""


@check("Java, HttpClient with HTTP/1.1 and HTTP/2, and URLConnection: bare")
def _():
    with open(WORK + "/Who.java", "w") as file:
        file.write(JAVA)
    output = run("java", "Who.java", "Bearer " + KEY, bare=True)
    told = dict(line.split(" ", 1) for line in output.splitlines())
    expect(list(told) == ["HTTP_1_1", "HTTP_2", "old"], output)
    granted(told["HTTP_1_1"], method="POST")
    granted(told["HTTP_2"], method="POST")
    granted(told["old"])


@check("Java, its store is whole, has its authorities and the VM's")
def _():
    output = run("keytool", "-list", "-cacerts", "-storepass", "changeit", bare=True)
    expect("flashpan, " in output and output.count("trustedCertEntry") > 100, output)


@check("apt")
def _():
    with open(WORK + "/list", "w") as file:
        file.write("deb [trusted=yes] https://open.test/apt ./\n")
    source = ["-o", f"Dir::Etc::sourcelist={WORK}/list", "-o", "Dir::Etc::sourceparts=-"]
    run("apt-get", *source, "-q", "update", "--error-on=any")
    output = run("apt-cache", *source, "show", "demo-of-apt")
    expect("Version: 1.0" in output, output)


@check("openssl s_client")
def _():
    for bare in [False, True]:
        request = f"GET /who HTTP/1.0\r\nHost: api.test\r\n{BEARER}\r\n\r\n"
        output = run("openssl", "s_client", "-quiet", "-verify_return_error", "-verify_hostname",
                     "api.test", "-connect", "api.test:443", "-servername", "api.test",
                     "-ign_eof", stdin=None, input=request.encode(), bare=bare)
        head, _, body = output.partition("\r\n\r\n")
        expect(head.startswith("HTTP/1.") and head[8:12] == " 200", output)
        granted(body)


@check("git, clone with a token in the URL")
def _():
    run("git", "clone", "--quiet", f"https://user:{KEY}@api.test/git/repo.git", "clone")
    with open(WORK + "/clone/data", "rb") as file:
        expect(file.read() == DATA, "the file")


@check("git, push with a token in a header")
def _():
    def git(*words, **options):
        return run("git", "-C", "clone", "-c", "user.name=a", "-c", "user.email=a@api.test",
                   "-c", "http.extraHeader=" + BEARER, *words, **options)
    # More than git sends with a length.
    with open(WORK + "/clone/more", "wb") as file:
        file.write(os.urandom(3_000_000))
    git("add", "more")
    git("commit", "--quiet", "-m", "second")
    git("push", "--quiet", "https://api.test/git/repo.git", "main")
    head = git("rev-parse", "HEAD").strip()
    output = git("ls-remote", "https://api.test/git/repo.git", "refs/heads/main")
    expect(output.startswith(head), output)


@check("git, without a token")
def _():
    output = run("git", "ls-remote", "https://api.test/git/repo.git", status=128)
    expect("could not read Username" in output, output)


@check("git, a rule that allows to fetch but not to push")
def _():
    run("git", "clone", "--quiet", "https://mirror.test/git/repo.git", "mirror")
    def git(*words, **options):
        return run("git", "-C", "mirror", "-c", "user.name=a", "-c", "user.email=a@api.test",
                   *words, **options)
    git("commit", "--quiet", "--allow-empty", "-m", "third")
    before = git("ls-remote", "origin", "refs/heads/main")
    output = git("push", "origin", "main", status=1)
    expect("403" in output, output)
    expect(git("ls-remote", "origin", "refs/heads/main") == before, "it was pushed")


@check("ssh, by name")
def _():
    output = run("ssh", "-v", "-o", "BatchMode=yes", "-o", "ConnectTimeout=120",
                 "ssh.test", status=255)
    expect("remote software version of_the_test" in output, output)


@check("ssh, a host that is not allowed")
def _():
    output = run("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=120", "evil.test",
                 status=255)
    expect("Could not resolve hostname" in output, output)
    output = run("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=120", "10.209.113.6",
                 status=255)
    expect("Connection refused" in output, output)


@check("TCP, by name and port")
def _():
    with socket.create_connection(("raw.test", 5432), timeout=120) as stream:
        stream.sendall(DATA[:100_000])
        stream.shutdown(socket.SHUT_WR)
        expect(stream.makefile("rb").read() == DATA[:100_000], "the echo")
    try:
        socket.create_connection(("raw.test", 5433), timeout=120)
        raise Failed("another port was reached")
    except ConnectionRefusedError:
        pass


def psql(*words, host="db.test", **options):
    address = f"host={host} user=guest password=of_the_test dbname=postgres"
    return run("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--dbname",
               address, *words, **options)


@check("psql, by name and port")
def _():
    # As it does on its own it encrypts, with what the server has.
    output = psql("-c", "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    expect(output == "t\n", output)
    lines = b"".join(b"%d\tline %d\n" % (number, number) for number in range(50_000))
    with open(WORK + "/lines", "wb") as file:
        file.write(lines)
    psql("-c", "create table lines (number int primary key, text text)",
         "-c", "\\copy lines from lines")
    psql("-c", "\\copy (select * from lines order by number) to back")
    with open(WORK + "/back", "rb") as file:
        expect(file.read() == lines, "what was written")


@check("psql, a host that is not allowed")
def _():
    output = psql("-c", "select 1", host="evil.test", status=2)
    expect("could not translate host name" in output, output)


GRPC = """
import grpc, os, queue
of_key = [("authorization", "Bearer " + os.environ["KEY"])]
channel = grpc.secure_channel("grpc.test:443", grpc.ssl_channel_credentials())
wait = {"timeout": 200, "wait_for_ready": True}

told, call = channel.unary_unary("/test.Echo/Who").with_call(b"", metadata=of_key, **wait)
trailing = dict(call.trailing_metadata())
assert told == b"bearer" and trailing["granted"] == "True", trailing
assert trailing["bytes-bin"] == b"\\0\\xff", trailing

counted = channel.unary_stream("/test.Echo/Count")(b"1000", **wait)
assert list(counted) == [b"%d" % number for number in range(1000)]
assert dict(counted.trailing_metadata())["sent"] == "1000"

large = [bytes([number]) * 100_000 for number in range(50)]
assert channel.stream_unary("/test.Echo/Total")(iter(large), **wait) == b"5000000"

# Each message is sent after the one before it came back.
messages = queue.Queue()
echo = channel.stream_stream("/test.Echo/Echo")(iter(messages.get, None), **wait)
for message in [b"one", b"", b"two" * 10_000]:
    messages.put(message)
    assert next(echo) == message
messages.put(None)
assert list(echo) == [] and echo.code() == grpc.StatusCode.OK

def error(method, **more):
    try:
        channel.unary_unary("/test.Echo/" + method)(b"now", timeout=200, **more)
    except grpc.RpcError as error:
        return error
wrong = error("Wrong")
assert wrong.code() == grpc.StatusCode.FAILED_PRECONDITION, wrong
assert wrong.details() == "not now", wrong
assert dict(wrong.trailing_metadata())["why-bin"] == b"\\0because", wrong
denied = error("Denied")
assert denied.code() == grpc.StatusCode.PERMISSION_DENIED, denied
print("all")
"""


@check("gRPC: one message and streams either way, trailers, errors, a rule that refuses")
def _():
    output = run("python3", "-c", GRPC)
    expect(output == "all\n", output)


@check("WebSocket")
def _():
    import websockets

    async def talk():
        headers = {"Authorization": "Bearer " + KEY}
        async with websockets.connect("wss://api.test/ws", extra_headers=headers) as peer:
            for text in ["one", "two" * 1000, b"\0" * 100]:
                await peer.send(text)
                expect(await peer.recv() == text, "the echo")
    asyncio.run(asyncio.wait_for(talk(), 120))


os.makedirs(WORK, exist_ok=True)
for name, does in CHECKS:
    try:
        does()
        print("ok", name, flush=True)
    except Exception as error:
        why = " ".join((str(error) or repr(error)).split())
        print(f"failed {name}: {type(error).__name__} {why[:1500]}", flush=True)
