//! What can be read in two ways, floods, and hosts that mean no good: HTTP in the clear, in TLS,
//! and in its second version, to a host that may be reached.

use flashpan_tests::internet::Internet;
use serde_json::{Value, json};

use super::{Attempt, NONE, told};

pub const ZONES: &[(&str, &[&[&str]])] = &[
    ("api.allowed.test", &[&["93.184.216.10"]]),
    ("web.allowed.test", &[&["93.184.216.10"]]),
    ("edit.allowed.test", &[&["93.184.216.10"]]),
    ("git.glob.test", &[&["93.184.216.10"]]),
    ("evil.test", &[&["93.184.216.66"]]),
];

/// Everything is looked into, and some of it has rules.
pub fn kept(_: &Internet) -> Value {
    json!({
        "intercept": true,
        "rules": [
            "deny POST,DELETE web.allowed.test/admin/**",
            "deny POST *.glob.test/**/git-receive-pack",
        ],
        "interception": {"rules": [{
            "phase": "after",
            "hosts": ["edit.allowed.test"],
            "body_replacements": [{"find": "hunter", "replace": "nobody"}],
        }]},
    })
}

/// What may be seen of it: that somebody is there was looked up and tried. Whom a request has
/// reached the server records.
const WEB: &[&str] = &["dns *", "tcp 93.184.216.10:80*", "tcp 93.184.216.10:443*"];

pub const FRAMING: &[Attempt] = &[
    Attempt {
        id: "F1",
        what: "a length and chunks",
        code: r"
post = 'POST / HTTP/1.1\r\nHost: api.allowed.test\r\n'
seen = (each((head, both('api.allowed.test', post + head + '\r\n0\r\n\r\nG')) for head in (
    'Content-Length: 6\r\nTransfer-Encoding: chunked\r\n',
    'Transfer-Encoding: chunked\r\nContent-Length: 6\r\n')), recorded())",
        seen: "('all 400 ambiguous_request', [])",
        told: &[told("", "93.184.216.10", "ambiguous_request")],
        contacts: WEB,
        // The first to open TLS.
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F2",
        what: "lengths that are two, or no numbers",
        code: r"
post = 'POST / HTTP/1.1\r\nHost: api.allowed.test\r\n'
seen = (each((of, both('api.allowed.test', post + 'Content-Length: %s\r\n\r\nabcde' % of)) for of in (
    '5\r\nContent-Length: 6', '5\r\nContent-Length: 5', '5, 5', '+5', '0x5', '5 5', '-5', '', '5;',
    '18446744073709551616', '99999999999999999999999999', '\xb2')), recorded())",
        seen: "('all 400 ambiguous_request', [])",
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F3",
        what: "codings of transfer that are not chunks, or hide that they are",
        code: r"
post = 'POST / HTTP/1.1\r\nHost: api.allowed.test\r\n'
seen = (each((line, both('api.allowed.test', post + line + '\r\n\r\n0\r\n\r\n')) for line in (
    'Transfer-Encoding: xchunked', 'Transfer-Encoding: chunked, identity', 'Transfer-Encoding: gzip, chunked',
    'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked', 'Transfer-Encoding: chunked\x0b',
    'Transfer-Encoding:\x0bchunked', 'Transfer-Encoding : chunked', 'X: a\r\n Transfer-Encoding: chunked',
    'X: a\r\n\tTransfer-Encoding: chunked', 'Transfer-Encoding:\r\n chunked')), recorded())",
        seen: "('all 400 ambiguous_request', [])",
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F4",
        what: "bare line feeds and carriage returns, NUL, blanks in names",
        code: r"
get = 'GET / HTTP/1.1\r\nHost: api.allowed.test\r\n'
seen = (each((rest, both('api.allowed.test', get + rest + '\r\n\r\n')) for rest in (
    'X: a\nHost: evil.test', 'X: a\rHost: evil.test', 'X: a\0b', 'X Y: z', ': z', 'X', 'X\0: y', 'X\t: y',
    'X: y\r\n\n', '\x7fX: y', 'X: \x1b[2J')), recorded())",
        seen: "('all 400 ambiguous_request', [])",
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F5",
        what: "chunks whose sizes are none, with extensions, without ends",
        code: r"
head = 'POST / HTTP/1.1\r\nHost: api.allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n'
hidden = 'GET /hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n'
def kind(said):
    return 'refused' if 'evil' not in said and '200' not in said else said
seen = (each((body, kind(both('api.allowed.test', head + body + hidden, 2))) for body in (
    '5;ext=\x22\r\nabcde\r\n0\r\n\r\n', '5;c4n4ry\r\nabcde\r\n0\r\n\r\n', '5\nabcde\r\n0\r\n\r\n',
    '0x5\r\nabcde\r\n0\r\n\r\n', '+5\r\nabcde\r\n0\r\n\r\n', ' 5\r\nabcde\r\n0\r\n\r\n',
    '5\r\nabcdeX\r\n0\r\n\r\n', '5\r\nabcde\n0\r\n\r\n', '10000000000000005\r\nabcde\r\n0\r\n\r\n',
    '-1\r\nabcde\r\n0\r\n\r\n', '0\r\nX y\r\n\r\n', '0\r\n X: y\r\n\r\n')),
    [whom for whom in recorded() if whom != 'api.allowed.test'])",
        seen: "('all refused', [])",
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F5",
        what: "trailers that would be heads",
        code: r"
head = 'POST / HTTP/1.1\r\nHost: api.allowed.test\r\nTE: trailers\r\nTrailer: %s\r\nTransfer-Encoding: chunked\r\n\r\n'
seen = (each((name, both('api.allowed.test', head % name + '5\r\nabcde\r\n0\r\n%s: x\r\n\r\n' % name))
             for name in ('Host', 'Authorization', 'Content-Length', 'Transfer-Encoding', 'Cookie')), set(recorded()))",
        seen: "('all 200', {'api.allowed.test'})",
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F7",
        what: "requests in bodies, and behind an upgrade that was refused",
        code: r"
inner = 'GET /hidden HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n'
def body(method, more=''):
    head = '%s / HTTP/1.1\r\nHost: api.allowed.test\r\n%sContent-Length: %d\r\n\r\n' % (method, more, len(inner))
    return both('api.allowed.test', head + inner + inner.replace('api.allowed', 'evil'), 2)
seen = (each((method, body(method)) for method in ('GET', 'POST', 'PUT')), len(recorded()))",
        seen: "('all in the clear 200, 403 host_not_allowed, in TLS 200, 403 host_mismatch', 6)",
        told: &[told("http", "evil.test", "host_not_allowed")],
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F8",
        what: "a body that is announced and never comes, and one that nobody has asked for",
        code: r"
head = 'POST / HTTP/1.1\r\nHost: api.allowed.test\r\nExpect: %s\r\nContent-Length: 5\r\n\r\n'
def asked(stream):
    stream.sendall((head % '100-continue').encode())
    return stream.recv(64).split(b'\r\n')[0].decode()
with web_stream('api.allowed.test', None, False) as one, web_stream('api.allowed.test', None, True) as two:
    seen = (asked(one), asked(two), both('api.allowed.test', head % 'something' + 'abcde'), len(recorded()) < 4)",
        seen: "('HTTP/1.1 100 Continue', 'HTTP/1.1 100 Continue', '200', True)",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F12",
        what: "heads of a megabyte, of 10,000 lines, of a long target",
        code: r"
head = 'GET %s HTTP/1.1\r\nHost: api.allowed.test\r\n%s\r\n'
recorded()
seen = (each((what, both('api.allowed.test', head % of)) for what, of in dict(
    value=('/', 'X: %s\r\n' % ('a' * (1 << 20))), lines=('/', 'X: y\r\n' * 10000),
    target=('/' + 'a' * 100000, ''), name=('/', 'X' * 100000 + ': y\r\n')).items()), recorded())",
        seen: "('all 431 ambiguous_request', [])",
        contacts: WEB,
        waits: true,
        ..NONE
    },
];

pub const RULES: &[Attempt] = &[
    Attempt {
        id: "F13",
        what: "a path that is denied, in other forms",
        code: r"
post = 'POST %s HTTP/1.1\r\nHost: web.allowed.test\r\nContent-Length: 0\r\n\r\n'
kind = lambda said: 'refused' if said in ('400 ambiguous_request', '403 rule_denied') else said
seen = (each((path, kind(both('web.allowed.test', post % path))) for path in (
    '/open/../admin/x', '/open/%2e%2e/admin/x', '/%2e/admin/x', '//admin/x', '/admin//x', '/admin;a/x',
    '/admin/x;a', '/open/..;/admin/x', '/admin%2fx', '/open/..%2fadmin/x', '/%61dmin/x', '/admin/%78',
    '/admin/.', '/admin', '/admin/x?y', '/admin/?/open', '/./admin/x', '/admin%00/x', '/admin%5cx')),
    recorded('api.allowed.test'))",
        seen: "('all refused', [])",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F13",
        what: "a path that is none",
        code: r"
post = 'POST %s HTTP/1.1\r\nHost: web.allowed.test\r\nContent-Length: 0\r\n\r\n'
seen = (each((path, both('web.allowed.test', post % path)) for path in (
    'admin/x', '\\admin\\x', '/\\admin', '*')), recorded('api.allowed.test'))",
        seen: "('all 400 ambiguous_request', [])",
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F14",
        what: "a method that is denied, in other forms",
        code: r"
request = '%s /admin/x HTTP/1.1\r\nHost: web.allowed.test\r\n%sContent-Length: 0\r\n\r\n'
def passed(name):
    with web_stream('web.allowed.test', None, True) as stream:
        stream.sendall((request % ('GET', name + ': DELETE\r\n')).encode())
        return str(described(responses(stream)).get('methods'))
seen = (each((method, both('web.allowed.test', request % (method, '')))
             for method in ('post', 'Post', 'DELETE', 'delete')),
        each((name, passed(name)) for name in ('X-HTTP-Method-Override', 'X-HTTP-Method', 'X-Method-Override')))",
        seen: "(\"most 400 ambiguous_request, but [('DELETE', '403 rule_denied')]\", 'all []')",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F15",
        what: "one rule in the clear, in TLS, in HTTP/2, and with a whole URL",
        code: r"
post = 'POST %s HTTP/1.1\r\nHost: web.allowed.test\r\nContent-Length: 0\r\n\r\n'
of2 = lambda path: http2('93.184.216.10', 'web.allowed.test', {':method': 'POST', ':path': path})
whole = raw_http('93.184.216.10', post % 'http://web.allowed.test/admin/x')
recorded()
seen = (both('web.allowed.test', post % '/admin/x'), of2('/admin/x'), whole,
        both('web.allowed.test', post % '/open/x'), of2('/open/x'), len(recorded('api.allowed.test')))",
        seen: "('403 rule_denied', 'rule_denied', '403 rule_denied', '200', 'nothing', 3)",
        told: &[
            told("https", "web.allowed.test", "rule_denied"),
            told("http", "web.allowed.test", "rule_denied"),
        ],
        contacts: WEB,
        ..NONE
    },
    Attempt {
        id: "F16",
        what: "a query does not change what a path is",
        code: r"
post = 'POST %s HTTP/1.1\r\nHost: web.allowed.test\r\nContent-Length: 0\r\n\r\n'
seen = (each((path, both('web.allowed.test', post % path)) for path in (
            '/admin/x?a=1&a=2', '/admin/x?;', '/admin/x?%00', '/admin/x?../open', '/admin/x??')),
        both('web.allowed.test', post % '/open?/admin/x'))",
        seen: "('all 403 rule_denied', '200')",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F18",
        what: "a body that is replaced, in codings that are understood, and in others",
        code: r"
def coded(coding):
    with web_stream('edit.allowed.test', None, True) as stream:
        stream.sendall(web_request('edit.allowed.test', '/coded', 'Authorization: %s\r\n' % coding))
        return responses(stream)
def reflected(text):
    with web_stream('edit.allowed.test', None, True) as stream:
        stream.sendall(web_request('edit.allowed.test', '/reflect', 'Accept-Encoding: gzip, br, dcz\r\nAuthorization: %s\r\n' % text))
        return responses(stream)
seen = (reflected('a hunter'), each((coding, coded(coding)) for coding in ('compress', 'dcb', 'aws-chunked', 'gzip, x')))",
        seen: "('200 a nobody', 'all 403 blocked_by_rule')",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F21",
        what: "a push where only what fetches is allowed",
        code: r"
post = '%s /a/b.git/%s HTTP/1.1\r\nHost: git.glob.test\r\nContent-Length: 0\r\n\r\n'
push = {':method': 'POST', ':path': '/a/b.git/git-receive-pack'}
seen = (both('git.glob.test', post % ('POST', 'git-receive-pack')), http2('93.184.216.10', 'git.glob.test', push),
        both('git.glob.test', post % ('POST', 'git-receive-pack?service=git-upload-pack')),
        both('git.glob.test', post % ('POST', 'git-upload-pack')))",
        seen: "('403 rule_denied', 'rule_denied', '403 rule_denied', '200')",
        told: &[told("https", "git.glob.test", "rule_denied")],
        contacts: WEB,
        ..NONE
    },
];

pub const FRAMES: &[Attempt] = &[
    Attempt {
        id: "F9",
        what: "what belongs to a connection in HTTP/2, capitals, lines in values, lengths",
        code: r"
recorded()
kind = lambda said: 'refused' if said in ('reset', 'gone') else said
seen = (each((what, kind(http2('93.184.216.10', 'api.allowed.test', head))) for what, head in dict(
    chunks={'transfer-encoding': 'chunked'}, connection={'connection': 'x-a'}, upgrade={'upgrade': 'websocket'},
    alive={'keep-alive': '1'}, capitals={'X-Capitals': '1'}, line={'x-a': '1\r\nhost: evil.test'}, nul={'x-a': '1\0'},
    length={'content-length': '5'}, none={'content-length': 'x'}, te={'te': 'gzip'}, name={'x-a\r\nb': '1'}).items()),
    recorded())",
        seen: "('all refused', [])",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F10",
        what: "another request in a path or method of HTTP/2",
        code: r"
smuggled = ' HTTP/1.1\r\nhost: evil.test\r\n\r\n'
kind = lambda said: 'refused' if said in ('reset', 'gone') else said
seen = (each((what, kind(http2('93.184.216.10', 'api.allowed.test', head))) for what, head in dict(
    path={':path': '/' + smuggled}, blank={':path': '/a b'}, method={':method': 'GET /' + smuggled},
    scheme={':scheme': 'https://evil.test/'}, empty={':path': ''}, none={':path': None},
    authority={':authority': 'api.allowed.test\r\nx: y'}).items()), recorded())",
        seen: "('all refused', [])",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F11",
        what: "floods of resets, of heads without an end, of settings and pings; a table that explodes",
        code: r"
name = 'api.allowed.test'
resets = (frame2(1, 5, of, head2(name)) + frame2(3, 0, of, b'\0\0\0\x08') for of in range(1, 20001, 2))
endless = [frame2(1, 1, 1, head2(name))] + [frame2(9, 0, 1, b'\0\3x-a\x64' + b'a' * 100)] * 100000
settings, pings = [frame2(4, 0, 0, b'\0\3\0\0\0\1') * 1000] * 100, [frame2(6, 0, 0, bytes(8)) * 1000] * 100
table = head2(name) + b'\x40\3x-a\x7f\xa1\x1e' + b'a' * 4000
bomb = [frame2(1, 5, 1, table + b'\xbe' * 12000)]
ends = dict(resets=flooded(name, resets), endless=flooded(name, endless), bomb=flooded(name, bomb))
held = {flooded(name, settings), flooded(name, pings)} <= {'gone', 'held'}
seen = (each(ends.items()), held, web(name), len(recorded()) < 300)",
        seen: "('all gone', True, 'nothing', True)",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F11",
        what: "windows that stay closed, on ten connections at once",
        code: r"
import ssl
context, kept = ssl._create_unverified_context(), []
context.set_alpn_protocols(['h2'])
for _ in range(10):
    stream = socket.create_connection(('93.184.216.10', 443), PATIENCE)
    stream = context.wrap_socket(stream, server_hostname='api.allowed.test')
    stream.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + frame2(4, 0, 0, b'\0\4\0\0\0\0')
                   + b''.join(frame2(1, 5, of, head2('api.allowed.test')) for of in range(1, 21, 2)))
    kept.append(stream)
seen = (web('api.allowed.test'), both('api.allowed.test', web_request('api.allowed.test')))
for stream in kept:
    stream.close()",
        seen: "('nothing', '200')",
        contacts: WEB,
        waits: true,
        ..NONE
    },
];

pub const HOSTS: &[Attempt] = &[
    Attempt {
        id: "F8",
        what: "a host that hints a thousand times, and sends bodies that there must not be",
        code: r"
get = 'GET %s HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n'
seen = (both('api.allowed.test', get % '/hints'),
        [both('api.allowed.test', get % path + get % '/', 2) for path in ('/204', '/304')])",
        seen: "('200 hello', ['204 , 200', '304 , 200'])",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F20",
        what: "a host that says more than it was asked, less than it says, or two lengths",
        code: r"
get = 'GET %s HTTP/1.1\r\nHost: api.allowed.test\r\n\r\n'
def plain(path):
    with web_stream('api.allowed.test', None, True) as stream:
        stream.sendall((get % path).encode())
        said = b''
        try:
            while more := stream.recv(65536):
                said += more
                if said.endswith(b'\r\n\r\nhello') and path == '/two':
                    stream.sendall((get % '/').encode())
        except OSError:
            pass
        return said.split(b' ')[1].decode(), b'hidden' in said
seen = (both('api.allowed.test', get % '/two' + get % '/', 2), plain('/two'), plain('/fold'), plain('/lengths'))",
        seen: "('200 hello, 200', ('200', False), ('502', False), ('502', False))",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F20",
        what: "a response that breaks off, and one that explodes where it is looked into",
        code: r"
import http.client
def body(host, path):
    with web_stream(host, None, True) as stream:
        stream.sendall(web_request(host, path))
        answer, count = http.client.HTTPResponse(stream), 0
        try:
            answer.begin()
            while more := answer.read(1 << 16):
                count += len(more)
            # What is left of what was announced.
            return 'broken off' if answer.length else 'whole'
        except (OSError, http.client.HTTPException):
            return 'broken off' if count < 1 << 24 else count
seen = (body('api.allowed.test', '/short'), body('edit.allowed.test', '/bomb'), web('api.allowed.test'))",
        seen: "('broken off', 'broken off', 'nothing')",
        contacts: WEB,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "F19",
        what: "heads and bodies byte by byte, a response that never ends, a window that stays closed",
        code: r"
slow = [web_stream('api.allowed.test', None, tls) for tls in (False, True) for _ in range(20)]
for number, stream in enumerate(slow):
    target = '/for-ever' if number % 2 else '/'
    stream.sendall(web_request('api.allowed.test', target)[:-2 if number % 4 < 2 else None])
began = time.monotonic()
all = [web('api.allowed.test', tls=tls) for tls in (False, True)]
took = time.monotonic() - began
for stream in slow:
    stream.close()
seen = (all, took < 20)",
        seen: "(['nothing', 'nothing'], True)",
        contacts: WEB,
        waits: true,
        ..NONE
    },
];
