//! What is changed while a guest has connections: what it may reach, and secrets.

use super::secrets::{BODY, VALUES};
use super::{Act, Attempt, NONE, told};

pub const WHILE_IT_RUNS: &[Attempt] = &[
    Attempt {
        id: "B11",
        what: "a host that may not be reached any more, on a connection that stays",
        code: "\
late = 'late.allowed.test'
def turn(stream, host):
    said = once_more(stream, host, described)
    return said.get('turn', said.get('said'))
seen = []
with web_stream(late, None, False) as stream:
    seen.append(turn(stream, late))
    host()
    seen += [turn(stream, late), turn(stream, late)]
    host()
    seen.append(turn(stream, late))
    host()
    seen.append(turn(stream, late))
with web_stream(late, None, False) as stream:
    seen.append(turn(stream, late))",
        seen: "['403 host_not_allowed', 1, 2, '403 host_not_allowed', 1, 1]",
        told: &[
            told("http", "late.allowed.test", "host_not_allowed"),
            told("http", "late.allowed.test", "allowed"),
        ],
        contacts: &["dns late.allowed.test *", "tcp 93.184.216.10:80"],
        acts: &[
            Act::Allow("late.allowed.test"),
            Act::Disallow("late.allowed.test"),
            Act::Allow("late.allowed.test"),
        ],
        ..NONE
    },
    Attempt {
        id: "B11",
        what: "the same in TLS, while a response is under way, and from another host's",
        code: "\
late = 'late.allowed.test'
chunk = b'3\\r\\none\\r\\n'
with web_stream('api.allowed.test', None, True) as other:
    before = once_more(other, 'api.allowed.test')
    host()
    with web_stream(late, None, True) as stream:
        stream.sendall(b'POST /stream HTTP/1.1\\r\\nHost: %s\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n' % late.encode())
        stream.sendall(chunk)
        lines = stream.makefile('rb')
        while lines.readline().strip():
            pass
        first = lines.readline() + lines.readline()
        host()
        # TLS would hide how it ends.
        with socket.socket(fileno=os.dup(stream.fileno())) as below:
            below.settimeout(PATIENCE)
            try:
                while (rest := below.recv(4096)):
                    pass
            except OSError as problem:
                rest = error(problem)
    seen = (before, first, rest, web(late), once_more(other, 'api.allowed.test'))",
        seen: "('nothing', b'3\\r\\none\\r\\n', 'ECONNRESET', '403 host_not_allowed', 'nothing')",
        told: &[told("https", "late.allowed.test", "host_not_allowed")],
        contacts: &["dns *", "tcp 93.184.216.10:443"],
        acts: &[
            Act::Allow("late.allowed.test"),
            Act::Disallow("late.allowed.test"),
        ],
        ..NONE
    },
    Attempt {
        id: "G20",
        what: "values that no request can carry",
        code: "\
for _ in range(4):
    host()
seen = web('turn.allowed.test', headers='X-A: %s\\r\\n' % os.environ['TURN'])",
        seen: "x-a:2",
        contacts: &["dns turn.allowed.test *", "tcp 93.184.216.10:443"],
        acts: &[
            Act::Refuse("TURN", ""),
            Act::Refuse("TURN", "c4n4ry\r\nX-Evil: 1"),
            Act::Refuse("TURN", "c4n4ry\0"),
            Act::Refuse("TURN", "SANDBOX_SECRET_"),
        ],
        ..NONE
    },
    Attempt {
        id: "G18",
        what: "another value, and none, on a connection that stays",
        code: "\
turn, header = 'turn.allowed.test', 'X-A: %s\\r\\n' % os.environ['TURN']
before = 'c4n4ry' + '-before-it-turned'
after = 'c4n4ry' + '-after-it-turned'
def said(number):
    text = plain_web(turn, '/say/%d' % number, '')
    return (os.environ['TURN'] in text, before in text or after in text)
with web_stream(turn, None, True) as stream:
    first = once_more(stream, turn, headers=header)
    host()
    second = once_more(stream, turn, headers=header)
    kept = [said(2), said(3)]
    host()
    third = once_more(stream, turn, headers=header)
    gone = said(3)
    fourth = once_more(stream, turn)
seen = (first, second, kept, third, gone, fourth)",
        seen: "('x-a:2', 'x-a:3', [(True, False), (True, False)], '403 secret_leak', (True, False), 'nothing')",
        told: &[told("https", "turn.allowed.test", "secret_leak")],
        contacts: &["dns turn.allowed.test *", "tcp 93.184.216.10:443"],
        acts: &[Act::Set("TURN", VALUES[3]), Act::Revoke("TURN")],
        ..NONE
    },
    Attempt {
        id: "G18",
        what: "a request that began before the value was taken away",
        code: "\
body = os.environ['BODY'].encode()
chunk = lambda data: b'%x\\r\\n%s\\r\\n' % (len(data), data)
said = []
with web_stream('body.allowed.test', None, True) as stream:
    stream.sendall(b'POST /stream HTTP/1.1\\r\\nHost: body.allowed.test\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n')
    stream.sendall(chunk(body + b' before'))
    lines = stream.makefile('rb')
    while lines.readline().strip():
        pass
    for more in (body + b' after', b''):
        said.append(lines.read(int(lines.readline(), 16)).decode())
        lines.readline()
        if more:
            host()
        stream.sendall(chunk(more))
seen = (said, web('body.allowed.test', body=os.environ['BODY']))",
        seen: "(['* before', '* after'], '403 secret_leak')",
        told: &[told("https", "body.allowed.test", "secret_leak")],
        contacts: BODY,
        acts: &[Act::Revoke("BODY")],
        ..NONE
    },
];
