//! Connections to ports of HTTP: whom they name, whom they are made to, and what they are.

use super::{Attempt, NONE, told};

pub const ZONES: &[(&str, &[&[&str]])] = &[
    ("web.allowed.test", &[&["93.184.216.15"]]),
    ("turn.glob.test", &[&["93.184.216.24"], &["10.0.0.6"]]),
];

pub const HOSTS: &[Attempt] = &[
    Attempt {
        id: "A1",
        what: "TLS to an address of nobody, without a name",
        code: "seen = (https('93.184.216.66', None), http('93.184.216.66', '93.184.216.66'))",
        seen: "('403 no_server_name', '403 host_not_allowed')",
        told: &[told("", "93.184.216.66", "no_server_name")],
        ..NONE
    },
    Attempt {
        id: "A2",
        what: "the address of an allowed host by requests, which nobody has asked for",
        code: "seen = http('93.184.216.15', 'web.allowed.test')",
        seen: "200 93.184.216.15 for web.allowed.test",
        told: &[told("http", "web.allowed.test", "allowed")],
        contacts: &[
            "dns web.allowed.test A",
            "dns web.allowed.test AAAA",
            "tcp 93.184.216.15:80",
        ],
        ..NONE
    },
    Attempt {
        id: "A3",
        what: "an attacker's address, with the name of an allowed host in TLS",
        // Who is there speaks no TLS: it was passed on, and to whom it is for.
        code: "seen = https('93.184.216.66', 'api.allowed.test')",
        seen: "tls WRONG_VERSION_NUMBER",
        contacts: &[
            "dns api.allowed.test A",
            "dns api.allowed.test AAAA",
            "tcp 93.184.216.10:443",
        ],
        ..NONE
    },
    Attempt {
        id: "A4",
        what: "an attacker's address, with the name of an allowed host in a request",
        code: "seen = http('93.184.216.66', 'API.allowed.TEST')",
        seen: "200 93.184.216.10 for api.allowed.test",
        told: &[told("http", "api.allowed.test", "allowed")],
        contacts: &[
            "dns api.allowed.test A",
            "dns api.allowed.test AAAA",
            "tcp 93.184.216.10:80",
        ],
        ..NONE
    },
    Attempt {
        id: "A5",
        what: "an allowed address, with the name of an attacker",
        code: "seen = (https('93.184.216.10', 'evil.test'), http('93.184.216.10', 'evil.test'))",
        seen: "('403 host_not_allowed', '403 host_not_allowed')",
        told: &[
            told("http", "evil.test", "host_not_allowed"),
            told("http", "evil.test", "host_not_allowed"),
        ],
        contacts: &["tcp 93.184.216.10:80", "tcp 93.184.216.10:443"],
        ..NONE
    },
    Attempt {
        id: "A10",
        what: "another host in the request line than in the header",
        code: "\
seen = each((target, http('93.184.216.10', host, target=target)) for target, host in (
    ('http://evil.test/c4n4ry', 'api.allowed.test'), ('http://api.allowed.test/', 'evil.test')))",
        seen: "all 403 host_mismatch",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "A11",
        what: "two hosts, a list of them, an empty one, none",
        code: "\
head = 'GET /c4n4ry HTTP/1.1\\r\\n'
seen = each((rest, raw_http('93.184.216.10', head + rest + '\\r\\n')) for rest in (
    'Host: api.allowed.test\\r\\nHost: evil.test\\r\\n', 'Host: evil.test\\r\\nhost: api.allowed.test\\r\\n',
    'Host: api.allowed.test\\r\\nHost: api.allowed.test\\r\\n', 'Host: api.allowed.test,evil.test\\r\\n',
    'Host: \\r\\n', ''))",
        seen: "all 400 ambiguous_request",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "A12",
        what: "hosts with users, paths, blanks, other ports and forms",
        code: "\
seen = each((host, http('93.184.216.10', host)[:3]) for host in (
    'api.allowed.test@evil.test', 'evil.test@api.allowed.test', 'api.allowed.test#.evil.test',
    'api.allowed.test/evil', 'api.allowed.test:80:80', 'api.allowed.test:', 'api.allowed.test:0',
    'api.allowed.test:+80', 'api.allowed.test\\\\.evil.test', 'api.allowed.test?.evil.test',
    'api..allowed.test', 'http://api.allowed.test', '[api.allowed.test]', 'api.allowed.test evil.test',
    'api.allowed.test%00.evil.test', 'api%2eallowed.test', '2130706433', '0x7f.1', '127.1', '0177.0.0.1'))",
        seen: "all 400",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "A12",
        what: "an allowed host at a port that the connection is not to",
        code: "\
seen = each((port, http('93.184.216.10', 'api.allowed.test:%d' % port)) for port in (22, 443, 8080))",
        seen: "all 403 host_mismatch",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "A13",
        what: "bytes in a host that end it for some",
        code: "\
seen = each((host, http('93.184.216.10', host)[:3]) for host in (
    'evil.test\\0.glob.test', 'api.allowed.test\\0', 'api.allowed.test\\t.evil.test', 'api.allowed.test\\x0b',
    'api.allowed.test\\x7f', 'api.allowed.test\\xa0', 'api\\xadallowed.test'))",
        seen: "all 400",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "B2",
        what: "what clouds tell their machines, by requests",
        code: "\
seen = each(((to, host), http(to, host)[:3]) for to, host in (
    ('169.254.169.254', '169.254.169.254'), ('93.184.216.10', '169.254.169.254'),
    ('169.254.169.254', 'meta.glob.test'), ('93.184.216.10', '[fd00:ec2::254]'), ('93.184.216.10', 'azure.glob.test')))",
        seen: "all 403",
        told: &[
            told("http", "169.254.169.254", "host_not_allowed"),
            told("http", "azure.glob.test", "metadata_address"),
        ],
        contacts: &[
            "tcp 93.184.216.10:80",
            "dns meta.glob.test A",
            "dns meta.glob.test AAAA",
            "dns azure.glob.test A",
            "dns azure.glob.test AAAA",
        ],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "requests for names whose addresses are private",
        code: "\
seen = each((name, http('93.184.216.10', name + '.glob.test')) for name in ('ten', 'loop', 'host', 'gateway', 'null'))",
        seen: "all 403 resolved_to_private",
        told: &[told("http", "ten.glob.test", "resolved_to_private")],
        contacts: &[
            "tcp 93.184.216.10:80",
            "dns ten.glob.test *",
            "dns loop.glob.test *",
            "dns host.glob.test *",
            "dns gateway.glob.test *",
            "dns null.glob.test *",
        ],
        ..NONE
    },
    Attempt {
        id: "B10",
        what: "requests for a name that is public first, and private then",
        code: "\
first = http('93.184.216.66', 'turn.glob.test')
time.sleep(6)
seen = (first, http('93.184.216.66', 'turn.glob.test'))",
        seen: "('200 93.184.216.24 for turn.glob.test', '403 resolved_to_private')",
        told: &[told("http", "turn.glob.test", "resolved_to_private")],
        contacts: &["dns turn.glob.test *", "tcp 93.184.216.24:80"],
        waits: true,
        ..NONE
    },
    Attempt {
        id: "B12",
        what: "an allowed host that leads on to what may not be reached",
        code: "\
def moved(url, to, host):
    first = http('93.184.216.10', 'api.allowed.test', target='/302/' + url)
    return (first == '302 ' + url, http(to, host)[:3])
seen = each((url, '%s, then %s' % moved(url, to, host)) for url, to, host in (
    ('http://169.254.169.254/latest/meta-data/', '169.254.169.254', '169.254.169.254'),
    ('http://evil.test/', '93.184.216.66', 'evil.test'), ('http://127.0.0.1:6000/', '93.184.216.10', '127.0.0.1')))",
        seen: "all True, then 403",
        told: &[
            told("http", "api.allowed.test", "allowed"),
            told("http", "evil.test", "host_not_allowed"),
            told("http", "169.254.169.254", "host_not_allowed"),
        ],
        contacts: &["dns api.allowed.test *", "tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "B13",
        what: "an allowed host that says where else it is",
        code: "\
with socket.create_connection(('93.184.216.10', 80), PATIENCE) as stream:
    stream.sendall(b'GET / HTTP/1.1\\r\\nHost: api.allowed.test\\r\\nConnection: close\\r\\n\\r\\n')
    said = stream.makefile('rb').read().lower()
seen = (said[:12], b'alt-svc' in said, ask('api.allowed.test', 'HTTPS'), ask('api.allowed.test', 'SVCB'))",
        seen: "(b'http/1.1 200', False, 'NOERROR', 'NOERROR')",
        contacts: &["dns api.allowed.test *", "tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "C8",
        what: "DNS over HTTPS to those who have it",
        code: "seen = (https('8.8.8.8', 'dns.google'), https('1.1.1.1', 'cloudflare-dns.com'), https('8.8.8.8', None))",
        seen: "('403 host_not_allowed', '403 host_not_allowed', '403 no_server_name')",
        ..NONE
    },
];

pub const PROTOCOLS: &[Attempt] = &[
    Attempt {
        id: "D9",
        what: "other protocols on the ports of HTTP and TLS, to an allowed host",
        code: "\
first = (b'SSH-2.0-c4n4ry\\r\\n', b'EHLO c4n4ry\\r\\n', b'USER c4n4ry\\r\\n', b'PING c4n4ry\\r\\n',
         b'\\0\\0\\0\\x20\\0\\3\\0\\0user\\0c4n4ry\\0\\0', b'\\x10\\x0e\\0\\4MQTT\\4\\2c4n4ry', b'NICK c4n4ry\\r\\n\\r\\n')
answers = {raw_http('93.184.216.10', data, port)[:3] for data in first for port in (80, 443)}
seen = sorted(answers - {'400', 'end', 'ECO'})",
        seen: "[]",
        contacts: &["tcp 93.184.216.10:80", "tcp 93.184.216.10:443"],
        waits: true,
        ..NONE
    },
    Attempt {
        id: "D10",
        what: "servers that speak first, on the port of TLS of an allowed host",
        code: "\
found = ask('api.allowed.test')
began = time.monotonic()
said = tcp('93.184.216.10', 443, b'')
seen = (said, time.monotonic() - began < 25)",
        // What the server says nobody passes on before the guest has said what it wants.
        seen: "('ECONNRESET', True)",
        told: &[told("tls", "93.184.216.10:443", "unknown_protocol")],
        contacts: &["dns api.allowed.test *", "tcp 93.184.216.10:443"],
        waits: true,
        ..NONE
    },
    Attempt {
        id: "D12",
        what: "tunnels by CONNECT, through an allowed host",
        code: "\
seen = each((target, raw_http('93.184.216.10', 'CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n' % (target, host))[:3])
            for target, host in (('evil.test:443', 'evil.test:443'), ('api.allowed.test:22', 'api.allowed.test:22'),
                                 ('api.allowed.test:80', 'api.allowed.test'), ('169.254.169.254:80', 'api.allowed.test')))",
        seen: "all 405",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "D14",
        what: "a line for proxies before a request",
        code: "\
request = 'GET / HTTP/1.1\\r\\nHost: api.allowed.test\\r\\n\\r\\n'
seen = raw_http('93.184.216.10', 'PROXY TCP4 1.2.3.4 5.6.7.8 1 2\\r\\n' + request)[:3]",
        seen: "400",
        contacts: &["tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "D15",
        what: "WebSocket to an allowed host, and to one that is not",
        code: "\
upgrade = ('GET /c4n4ry HTTP/1.1\\r\\nHost: %s\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n'
           'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n')
with socket.create_connection(('93.184.216.10', 80), PATIENCE) as stream:
    stream.sendall((upgrade % 'api.allowed.test').encode())
    with stream.makefile('rb') as lines:
        status = lines.readline().split()[1].decode()
        while lines.readline().strip():
            pass
        stream.sendall(b'frames\\n')
        frames = lines.readline().decode().strip()
seen = (status, frames, raw_http('93.184.216.10', upgrade % 'evil.test'))",
        seen: "('101', 'frames', '403 host_not_allowed')",
        told: &[told("http", "evil.test", "host_not_allowed")],
        contacts: &["dns api.allowed.test *", "tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "D16",
        what: "HTTP/2 in the clear, by an upgrade and without, and other upgrades",
        code: "\
upgrade = ('GET / HTTP/1.1\\r\\nHost: api.allowed.test\\r\\nConnection: Upgrade, HTTP2-Settings\\r\\n'
           'Upgrade: %s\\r\\nHTTP2-Settings: AAMAAABkAAQAAP__\\r\\n\\r\\n')
known = b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
seen = (each((to, raw_http('93.184.216.10', upgrade % to)) for to in ('h2c', 'evil', 'websocket, h2c')),
        raw_http('93.184.216.10', known)[:3])",
        seen: "('all 200 93.184.216.10 for api.allowed.test', '400')",
        contacts: &["dns api.allowed.test *", "tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "F6",
        what: "a request that is allowed, and one behind it that is not",
        code: "\
ask_for = 'GET / HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n'
seen = raw_http('93.184.216.10', ask_for % 'api.allowed.test' + ask_for % 'evil.test', count=2)",
        seen: "200 93.184.216.10 for api.allowed.test, 403 host_not_allowed",
        told: &[
            told("http", "api.allowed.test", "allowed"),
            told("http", "evil.test", "host_not_allowed"),
        ],
        contacts: &["tcp 93.184.216.10:80", "dns api.allowed.test *"],
        ..NONE
    },
];
