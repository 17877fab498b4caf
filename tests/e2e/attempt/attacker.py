# What attempts are made with. Each line of standard input is one, in Python, and each line
# of standard output is what came of it.
# That of TLS takes seconds, which are those of no attempt.
import errno, json, os, select, socket, ssl, struct, sys, time, traceback

GATEWAY = '198.18.0.1'
GATEWAY6 = 'fdf1:a5f1:a5f1::1'
# What never may be found in anything that leaves the host.
CANARY = b'c4n4ry'
# What stands for the secret, where there is one.
KEY = os.environ.get('KEY', '')
# Longer than the host takes for anything that it answers.
PATIENCE = 30
# How long is waited for what must not come.
MOMENT = 1.5

def family(host):
    return socket.AF_INET6 if ':' in host else socket.AF_INET

def error(problem):
    if isinstance(problem, TimeoutError):
        return 'silence'
    return errno.errorcode.get(problem.errno, str(problem))

# The first line that a server says, or what becomes of the connection.
def tcp(host, port, send=CANARY):
    try:
        with socket.create_connection((host, port), PATIENCE) as stream:
            if send:
                stream.sendall(send)
            said = stream.makefile('rb').readline().decode('latin-1').strip()
            return said or 'ended'
    except OSError as problem:
        return error(problem)

def udp(host, port, send=CANARY, wait=PATIENCE):
    with socket.socket(family(host), socket.SOCK_DGRAM) as peer:
        peer.settimeout(wait)
        try:
            peer.connect((host, port))
            peer.send(send)
            return 'echo' if peer.recv(2048) == send else 'answer'
        except OSError as problem:
            return error(problem)

# One word if all is the same.
def each(results):
    results = [(what, result) for what, result in results]
    kinds = {result for _, result in results}
    if len(kinds) == 1:
        return 'all ' + kinds.pop()
    common = max(kinds, key=lambda kind: sum(result == kind for _, result in results))
    return 'most %s, but %s' % (common, [pair for pair in results if pair[1] != common])

TYPES = dict(A=1, NS=2, CNAME=5, SOA=6, NULL=10, PTR=12, MX=15, TXT=16, AAAA=28, LOC=29, SRV=33,
             NAPTR=35, DNAME=39, SSHFP=44, TLSA=52, SVCB=64, HTTPS=65, URI=256, CAA=257,
             IXFR=251, AXFR=252, ANY=255)
CODES = ['NOERROR', 'FORMERR', 'SERVFAIL', 'NXDOMAIN', 'NOTIMP', 'REFUSED']

def encoded(name):
    labels = name if isinstance(name, list) else [l for l in name.encode().split(b'.') if l]
    return b''.join(bytes([len(label)]) + label for label in labels) + b'\0'

def question(name, kind='A', options=b'', flags=0x0100, klass=1, count=1):
    head = os.urandom(2) + struct.pack('>HHHHH', flags, count, 0, 0, 1)
    one = encoded(name) + struct.pack('>HH', TYPES[kind], klass)
    return head + one * count + b'\0' + struct.pack('>HHIH', 41, 1232, 0, len(options)) + options

def option(number, data):
    return struct.pack('>HH', number, len(data)) + data

def skip(message, at):
    while message[at]:
        if message[at] & 0xc0:
            return at + 2
        at += message[at] + 1
    return at + 1

# The code of an answer, the addresses or types of its records, and the word for why.
def told(message):
    flags, questions, *counts = struct.unpack('>HHHHH', message[2:12])
    at, found, why = 12, [], []
    for _ in range(questions):
        at = skip(message, at) + 4
    for _ in range(sum(counts)):
        at = skip(message, at)
        kind, _, _, length = struct.unpack('>HHIH', message[at:at + 10])
        data = message[at + 10:at + 10 + length]
        at += 10 + length
        if kind == 1:
            found.append(socket.inet_ntop(socket.AF_INET, data))
        elif kind == 28:
            found.append(socket.inet_ntop(socket.AF_INET6, data))
        elif kind == 41:
            if data[:2] == b'\0\x0f':
                why = [data[6:].decode().split(':')[0]]
        else:
            found.append('TYPE%d' % kind)
    return ' '.join([CODES[flags & 15]] + sorted(found) + why)

def asked(message, server=GATEWAY, wait=PATIENCE):
    with socket.socket(family(server), socket.SOCK_DGRAM) as peer:
        peer.settimeout(wait)
        try:
            peer.connect((server, 53))
            peer.send(message)
            answer = peer.recv(4096)
        except OSError as problem:
            return error(problem)
    if len(message) > 1 and answer[:2] != message[:2]:
        return 'an answer to something else'
    return told(answer)

def ask(name, kind='A', server=GATEWAY, **how):
    return asked(question(name, kind, **how), server)

def exactly(stream, length):
    data = b''
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data

# Several questions in one piece.
def ask_tcp(messages, server=GATEWAY):
    try:
        with socket.create_connection((server, 53), PATIENCE) as stream:
            stream.sendall(b''.join(struct.pack('>H', len(m)) + m for m in messages))
            answers = {}
            for _ in messages:
                answer = exactly(stream, struct.unpack('>H', exactly(stream, 2))[0])
                answers[answer[:2]] = told(answer)
            return [answers.get(message[:2]) for message in messages]
    except EOFError:
        return 'ended'
    except OSError as problem:
        return error(problem)

def content(lines, headers):
    if headers.get('transfer-encoding') != 'chunked':
        return lines.read(int(headers.get('content-length', 0)))
    body = b''
    while (length := int(lines.readline(), 16)):
        body += lines.read(length)
        lines.readline()
    lines.readline()
    return body

# What a stream answers to requests: the status of each response, and why it was refused or
# what is in it.
def responses(stream, count=1):
    lines, all = stream.makefile('rb'), []
    for _ in range(count):
        status = lines.readline().decode('latin-1').split(' ')
        if len(status) < 2:
            all.append(status[0].strip() or 'ended')
            break
        headers = {}
        while (line := lines.readline().decode('latin-1').strip()):
            name, _, value = line.partition(':')
            headers[name.lower()] = value.strip()
        body = content(lines, headers).decode('latin-1').strip()
        all.append(status[1] + ' ' + headers.get('x-flashpan-denied', body))
    return ', '.join(all)

# What is answered to bytes that are, or are not, requests.
def raw_http(to, data, port=80, count=1):
    try:
        with socket.create_connection((to, port), PATIENCE) as stream:
            stream.sendall(data if isinstance(data, bytes) else data.encode('latin-1'))
            return responses(stream, count)
    except OSError as problem:
        return error(problem)

def http(to, host, port=80, target='/', more=''):
    return raw_http(to, 'GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n' % (target, host, more), port)

# The same in TLS that names `name`, or nobody.
def https(to, name, host=None, port=443):
    try:
        with socket.create_connection((to, port), PATIENCE) as stream:
            context = ssl._create_unverified_context()
            with context.wrap_socket(stream, server_hostname=name) as stream:
                stream.sendall(('GET / HTTP/1.1\r\nHost: %s\r\n\r\n' % (host or name or to)).encode())
                return responses(stream)
    except ssl.SSLError as problem:
        return 'tls ' + problem.reason
    except OSError as problem:
        return error(problem)

# In which places of a request the server says that the value of the secret was; otherwise
# how it was answered.
def found(said):
    if not said.startswith('200 {'):
        return said
    return ' '.join(json.loads(said[4:])['found']) or 'nothing'

def web_request(host, target='/', headers='', body='', method=None):
    head = '%s %s HTTP/1.1\r\nHost: %s\r\n' % (method or ('POST' if body else 'GET'), target, host)
    length = 'Content-Length: %d\r\n' % len(body) if body else ''
    return (head + headers + length + 'Connection: close\r\n\r\n' + body).encode()

# One more request on a connection that stays: how it is answered, or ends.
def once_more(stream, host, say=found, **how):
    try:
        stream.sendall(web_request(host, **how).replace(b'Connection: close\r\n', b''))
        return say(responses(stream))
    except OSError as problem:
        return say(error(problem))

# What a server of the web says of a request, in a table.
def described(said):
    return json.loads(said[4:]) if said.startswith('200 {') else dict(said=said)

WEB = dict(expired=70, self=71, wrong=72, client=73, plain=74, cut=75)

def web_stream(host, to, tls):
    to = to or '93.184.216.%d' % WEB.get(host.split('.')[0], 10)
    stream = socket.create_connection((to, 443 if tls else 80), PATIENCE)
    return ssl._create_unverified_context().wrap_socket(stream, server_hostname=host) if tls else stream

def web(host, to=None, tls=True, **how):
    try:
        with web_stream(host, to, tls) as stream:
            stream.sendall(web_request(host, **how))
            return found(responses(stream))
    except OSError as problem:
        return error(problem)

# What is answered to bytes that are, or are not, requests to a host of the web, in the clear and
# in TLS: once, if that is the same.
def both(host, data, count=1):
    import re
    data = data if isinstance(data, bytes) else data.encode('latin-1')
    def said(tls):
        try:
            with web_stream(host, None, tls) as stream:
                stream.settimeout(PATIENCE)
                try:
                    stream.sendall(data)
                except OSError:
                    # Nobody need take all of it.
                    pass
                return re.sub(r'200 \{.*?\}', '200', responses(stream, count))
        except OSError as problem:
            return error(problem)
    plain, encrypted = said(False), said(True)
    return plain if plain == encrypted else 'in the clear %s, in TLS %s' % (plain, encrypted)

# Whom the server of the web has had requests for since it was last asked.
def recorded(host='api.allowed.test'):
    with web_stream(host, None, True) as stream:
        stream.sendall(web_request(host, '/record'))
        return [whom for whom, _ in json.loads(responses(stream)[4:])]

# All that is answered, with its headers.
def plain_web(host, target, headers):
    import gzip, http.client
    with web_stream(host, None, True) as stream:
        stream.sendall(web_request(host, target, headers))
        answer = http.client.HTTPResponse(stream)
        answer.begin()
        body = answer.read()
        if answer.headers['Content-Encoding'] == 'gzip':
            body = gzip.decompress(body)
        return (answer.headers.as_string() + body.decode('latin-1'))

# Requests in HTTP/2, each with headers besides those of every one: the code of a refusal, the
# places of a secret, or how the stream ended.
def http2(to, name, *requests):
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(['h2'])
    frame = lambda kind, flags, stream, data: (
        struct.pack('>I', len(data))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + data)
    literal = lambda text: bytes([len(text)]) + text.encode()
    with socket.create_connection((to, 443), PATIENCE) as stream:
        with context.wrap_socket(stream, server_hostname=name) as stream:
            sent = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame(4, 0, 0, b'')
            for number, request in enumerate(requests):
                head = {':method': 'GET', ':scheme': 'https', ':path': '/', ':authority': name} | request
                order = sorted(head, key=lambda key: not key.startswith(':'))
                block = b''.join(b'\0' + literal(key) + literal(head[key]) for key in order if head[key] is not None)
                sent += frame(1, 5, 2 * number + 1, block)
            stream.sendall(sent)
            bodies, ends = {}, {}
            while len(ends) < len(requests):
                try:
                    head = exactly(stream, 9)
                    kind, flags, of = head[3], head[4], struct.unpack('>I', head[5:])[0]
                    data = exactly(stream, struct.unpack('>I', b'\0' + head[:3])[0])
                except EOFError:
                    return 'ended'
                if kind == 7:
                    return 'gone'
                if kind == 3:
                    ends.setdefault(of, 'reset')
                elif kind in (0, 1):
                    if kind == 0:
                        bodies[of] = bodies.get(of, b'') + data
                    if flags & 1:
                        told = json.loads(bodies.get(of, b'{}'))
                        ends[of] = told.get('code') or ' '.join(told.get('found', ['empty'])) or 'nothing'
            return ', '.join(ends[of] for of in sorted(ends))

def frame2(kind, flags, stream, data=b''):
    return struct.pack('>I', len(data))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + data

# A head of a request in HPACK, all of it literal.
def head2(name, **more):
    head = {':method': 'GET', ':scheme': 'https', ':path': '/', ':authority': name} | more
    literal = lambda text: bytes([len(text)]) + text.encode()
    return b''.join(b'\0' + literal(key) + literal(head[key]) for key in head)

# What becomes of a connection of HTTP/2 on which these frames come: it is gone, or no more is
# taken from it, or all was taken.
def flooded(name, frames, settings=b''):
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(['h2'])
    with socket.create_connection(('93.184.216.10', 443), PATIENCE) as stream:
        with context.wrap_socket(stream, server_hostname=name) as stream:
            stream.settimeout(MOMENT)
            try:
                stream.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame2(4, 0, 0, settings))
                for one in frames:
                    stream.sendall(one)
                while stream.recv(65536):
                    pass
                return 'gone'
            except TimeoutError:
                return 'held'
            except OSError:
                return 'gone'

def extension(kind, data):
    return struct.pack('>HH', kind, len(data)) + data

# The first message of a client of TLS, in records.
def hello(name, version=0x0304, extensions=b''):
    all = extension(10, b'\0\4\0\x1d\0\x17') + extension(11, b'\1\0') + extension(13, b'\0\6\4\3\x08\4\4\1')
    if version == 0x0304:
        all += extension(43, b'\2\3\4') + extension(51, b'\0\x24\0\x1d\0\x20' + os.urandom(32))
    if name:
        text = name.encode()
        all += extension(0, struct.pack('>HBH', len(text) + 3, 0, len(text)) + text)
    all += extensions
    body = struct.pack('>H', min(version, 0x0303)) + os.urandom(32) + b'\0'
    body += b'\0\x0a\x13\1\x13\2\xc0\x2b\xc0\x2f\0\x2f' + b'\1\0' + struct.pack('>H', len(all)) + all
    message = b'\1' + struct.pack('>I', len(body))[1:] + body
    return b''.join(b'\x16\3\1' + struct.pack('>H', len(part)) + part
                    for part in (message[at:at + 16000] for at in range(0, len(message), 16000)))

# What is answered to it: the first record, or an end.
def first_word(to, data):
    try:
        with socket.create_connection((to, 443), PATIENCE) as stream:
            stream.sendall(data)
            said = stream.recv(1)
            return {b'\x16': 'hello', b'\x15': 'alert', b'': 'ended'}.get(said, str(said))
    except (ConnectionResetError, BrokenPipeError):
        return 'reset'
    except OSError as problem:
        return error(problem)

# The version that is agreed on when the first message is sent as it is cut.
def in_pieces(to, name, cut):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl._create_unverified_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with socket.create_connection((to, 443), PATIENCE) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            try:
                tls.do_handshake()
                is_over = True
            except ssl.SSLWantReadError:
                is_over = False
            for piece in cut(outgoing.read()):
                stream.sendall(piece)
            if is_over:
                return tls.version()
            cut = lambda data: [data]
            more = stream.recv(65536)
            if not more:
                return 'ended'
            incoming.write(more)

# The protocol that is agreed on in TLS.
def agreed(to, name, protocols):
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(protocols)
    try:
        with socket.create_connection((to, 443), PATIENCE) as stream:
            with context.wrap_socket(stream, server_hostname=name) as stream:
                return stream.selected_alpn_protocol()
    except ssl.SSLError:
        return 'refused'
    except OSError as problem:
        return error(problem)

def checksum(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('>%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff

# A packet of IPv4. `part` has flags and offset of a fragment.
def packet(protocol, to, body, source='198.18.0.2', part=0, number=1):
    head = struct.pack('>BBHHHBBH', 0x45, 0, 20 + len(body), number, part, 64, protocol, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    total = struct.pack('>H', checksum(head + addresses))
    return head[:10] + total + addresses + body

def datagram(to, port, data, source='198.18.0.2'):
    length = 8 + len(data)
    body = struct.pack('>HHHH', 4000, port, length, 0) + data
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack('>BBH', 0, 17, length)
    return body[:6] + struct.pack('>H', checksum(pseudo + body) or 0xffff) + body[8:]

def syn(to, port, source='198.18.0.2', data=b''):
    body = struct.pack('>HHIIBBHHH', 4001, port, 1, 0, 0x50, 2, 64000, 0, 0) + data
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack('>BBH', 0, 6, len(body))
    return body[:16] + struct.pack('>H', checksum(pseudo + body)) + body[18:]

GUEST_MAC = bytes.fromhex('02f1a5000002')
GATEWAY_MAC = bytes.fromhex('02f1a5000001')

def frame(body, kind=0x0800, to=GATEWAY_MAC, source=GUEST_MAC):
    return to + source + struct.pack('>H', kind) + body

# Puts frames on the link as they are.
def send_frames(*frames):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(('eth0', 0))
        for one in frames:
            link.send(one)
    return 'sent'

# What the link says in a moment: frames of one kind.
def heard(frames, kind, protocol=None):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind)) as link:
        link.bind(('eth0', kind))
        for one in frames:
            link.send(one)
        until, count = time.monotonic() + MOMENT, 0
        while select.select([link], [], [], max(0, until - time.monotonic()))[0]:
            got, (_, _, way, *_) = link.recvfrom(70000)
            if way != socket.PACKET_OUTGOING and (protocol is None or got[23] == protocol):
                count += 1
        return count

# What has to work whatever was tried.
def alive():
    if ask('alive.allowed.test') != 'NOERROR 93.184.216.99':
        return False
    return tcp('93.184.216.99', 7000, b'') == 'hello 93.184.216.99:7000'

# Has the host do what is next in the attempt.
def host():
    print(json.dumps(dict(host=True)), flush=True)
    sys.stdin.readline()

for line in sys.stdin:
    attempt = json.loads(line)
    # Names of its own, with all of these to begin with.
    began, names = time.monotonic(), dict(globals())
    try:
        exec(attempt['code'], names)
        seen = str(names['seen'])
    except Exception:
        seen = traceback.format_exc()
    took = time.monotonic() - began
    answer = dict(seen=seen, took=took, alive=alive(), ended=ask(attempt['end']))
    print(json.dumps(answer), flush=True)
