//! Addresses that are not of the internet, however they are come by.

use super::{Attempt, NONE, told};

/// What the name server says of names that whoever has them lets lead inwards.
pub const ZONES: &[(&str, &[&[&str]])] = &[
    ("ten.glob.test", &[&["10.0.0.1"]]),
    ("loop.glob.test", &[&["127.0.0.1", "::1"]]),
    ("null.glob.test", &[&["0.0.0.0", "::"]]),
    ("link.glob.test", &[&["169.254.7.7", "fe80::1"]]),
    ("gateway.glob.test", &[&["198.18.0.1", "fdf1:a5f1:a5f1::1"]]),
    ("guest.glob.test", &[&["198.18.0.2"]]),
    ("host.glob.test", &[&["81.2.69.142", "2a02:6b8:1::142"]]),
    ("neighbour.glob.test", &[&["81.2.69.140", "2a02:6b8:1::7"]]),
    ("mapped.glob.test", &[&["::ffff:10.0.0.1"]]),
    ("nat64.glob.test", &[&["64:ff9b::a00:1"]]),
    ("sixtofour.glob.test", &[&["2002:a00:1::1"]]),
    ("local6.glob.test", &[&["fd00::1"]]),
    ("many.glob.test", &[&["224.0.0.1", "ff02::1"]]),
    ("meta.glob.test", &[&["169.254.169.254", "fd00:ec2::254"]]),
    ("azure.glob.test", &[&["168.63.129.16"]]),
    (
        "mixed.glob.test",
        &[&["10.0.0.1", "93.184.216.22", "127.0.0.1"]],
    ),
    (
        "rebind.glob.test",
        &[&["93.184.216.23"], &["10.0.0.5"], &["127.0.0.1"]],
    ),
    ("own.glob.test", &[&["10.1.2.3"]]),
];

/// What a list of hosts leads to.
pub const RESOLVED: &[Attempt] = &[
    Attempt {
        id: "B1",
        what: "the host's services by every address that it may have",
        code: "\
seen = each((to, tcp(to, 6000)) for to in (
    GATEWAY, GATEWAY6, '81.2.69.142', '2a02:6b8:1::142', '::ffff:81.2.69.142', '::ffff:127.0.0.1'))
seen += ', ' + each((to, udp(to, 6000)) for to in (GATEWAY, '81.2.69.142'))",
        seen: "all ECONNREFUSED, all EHOSTUNREACH",
        told: &[told("tcp", "198.18.0.1:6000", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "allowed names whose addresses are private",
        code: "\
seen = each(((name, kind), ask(name + '.glob.test', kind)) for name, kind in (
    ('ten', 'A'), ('loop', 'A'), ('loop', 'AAAA'), ('null', 'A'), ('null', 'AAAA'), ('link', 'A'),
    ('link', 'AAAA'), ('gateway', 'A'), ('gateway', 'AAAA'), ('guest', 'A'), ('host', 'A'),
    ('host', 'AAAA'), ('neighbour', 'A'), ('neighbour', 'AAAA'), ('nat64', 'AAAA'),
    ('sixtofour', 'AAAA'), ('local6', 'AAAA'), ('many', 'A'), ('many', 'AAAA')))",
        seen: "all REFUSED resolved_to_private",
        told: &[
            told("dns", "host.glob.test", "resolved_to_private"),
            told("dns", "ten.glob.test", "resolved_to_private"),
        ],
        contacts: &[
            "dns ten.glob.test A",
            "dns loop.glob.test A",
            "dns loop.glob.test AAAA",
            "dns null.glob.test A",
            "dns null.glob.test AAAA",
            "dns link.glob.test A",
            "dns link.glob.test AAAA",
            "dns gateway.glob.test A",
            "dns gateway.glob.test AAAA",
            "dns guest.glob.test A",
            "dns host.glob.test A",
            "dns host.glob.test AAAA",
            "dns neighbour.glob.test A",
            "dns neighbour.glob.test AAAA",
            "dns nat64.glob.test AAAA",
            "dns sixtofour.glob.test AAAA",
            "dns local6.glob.test AAAA",
            "dns many.glob.test A",
            "dns many.glob.test AAAA",
        ],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "one whose address is one of IPv4 in the form of IPv6",
        code: "seen = ask('mapped.glob.test', 'AAAA')",
        seen: "NOERROR",
        contacts: &["dns mapped.glob.test AAAA"],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "ones that lead to what clouds tell their machines",
        code: "\
seen = each(((name, kind), ask(name + '.glob.test', kind))
            for name, kind in (('meta', 'A'), ('meta', 'AAAA'), ('azure', 'A')))",
        seen: "all REFUSED metadata_address",
        told: &[told("dns", "meta.glob.test", "metadata_address")],
        contacts: &[
            "dns meta.glob.test A",
            "dns meta.glob.test AAAA",
            "dns azure.glob.test A",
        ],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "the same addresses once the names were asked for",
        code: "\
seen = each((to, tcp(to, 7000)) for to in (
    '10.0.0.1', '169.254.7.7', '169.254.169.254', '168.63.129.16', '81.2.69.142', '81.2.69.140',
    '2a02:6b8:1::7', '64:ff9b::a00:1', '2002:a00:1::1', 'fd00::1', 'fd00:ec2::254', '::ffff:10.0.0.1'))",
        seen: "all ECONNREFUSED",
        told: &[told("tcp", "10.0.0.1:7000", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "into a network of which one port is allowed, by another",
        code: "\
seen = (ask('own.glob.test'), tcp('10.1.2.3', 7000), tcp('10.1.2.3', 22), tcp('10.1.2.3', 5432))",
        seen: "('NOERROR 10.1.2.3', 'ECONNREFUSED', 'ECONNREFUSED', 'hello 10.1.2.3:5432')",
        told: &[told("tcp", "10.1.2.3:7000", "resolved_to_private")],
        contacts: &["dns own.glob.test A", "tcp 10.1.2.3:5432"],
        ..NONE
    },
    Attempt {
        id: "B9",
        what: "a name with a public address and private ones",
        code: "\
seen = (ask('mixed.glob.test'), tcp('93.184.216.22', 7000), tcp('10.0.0.1', 7000))",
        seen: "('NOERROR 93.184.216.22', 'hello 93.184.216.22:7000', 'ECONNREFUSED')",
        contacts: &["dns mixed.glob.test A", "tcp 93.184.216.22:7000"],
        ..NONE
    },
    Attempt {
        id: "B10",
        what: "a name that is public when asked for, and private then",
        code: "\
first = (ask('rebind.glob.test'), tcp('93.184.216.23', 7000))
# As long as an answer counts at least, whatever it says.
time.sleep(6)
seen = first + (ask('rebind.glob.test'), tcp('10.0.0.5', 7000), tcp('93.184.216.23', 7000))",
        seen: "('NOERROR 93.184.216.23', 'hello 93.184.216.23:7000', 'REFUSED resolved_to_private', \
               'ECONNREFUSED', 'hello 93.184.216.23:7000')",
        told: &[told("dns", "rebind.glob.test", "resolved_to_private")],
        contacts: &["dns rebind.glob.test A", "tcp 93.184.216.23:7000"],
        waits: true,
        ..NONE
    },
];

/// What an open network does not lead to.
pub const SPECIAL: &[Attempt] = &[
    Attempt {
        id: "B0",
        what: "(the internet, which it leads to)",
        code: "\
seen = [tcp('93.184.216.66', 7000), tcp('223.255.255.255', 7000), tcp('2a00:1450::10', 7000), udp('93.184.216.12', 123)]",
        seen: "['hello 93.184.216.66:7000', 'hello 223.255.255.255:7000', 'hello [2a00:1450::10]:7000', 'echo']",
        contacts: &[
            "tcp 93.184.216.66:7000",
            "tcp 223.255.255.255:7000",
            "tcp [2a00:1450::10]:7000",
            "udp 93.184.216.12:123",
        ],
        ..NONE
    },
    Attempt {
        id: "B1",
        what: "loopback, and no address, by packets of our own making",
        code: "\
targets = ('127.0.0.1', '127.255.255.254', '127.0.0.53', '0.0.0.0', '0.1.2.3')
send_frames(*[frame(packet(6, to, syn(to, 6000))) for to in targets])
send_frames(*[frame(packet(17, to, datagram(to, 6000, CANARY))) for to in targets])
seen = each((to, tcp(to, 6000)) for to in ('::ffff:127.0.0.1', GATEWAY, GATEWAY6, '0.1.2.3'))",
        seen: "all ECONNREFUSED",
        told: &[
            told("tcp", "127.0.0.1:6000", "private_address"),
            told("tcp", "127.255.255.254:6000", "private_address"),
            told("udp", "127.0.0.1:6000", "private_address"),
            told("tcp", "198.18.0.1:6000", "private_address"),
        ],
        ..NONE
    },
    Attempt {
        id: "B2",
        what: "what clouds tell their machines",
        code: "\
targets = ('169.254.169.254', '169.254.170.2', '100.100.100.200', '168.63.129.16', '192.0.0.192',
           'fd00:ec2::254', '::ffff:169.254.169.254')
seen = each((to, tcp(to, 7000)) for to in targets)
seen += ', ' + each((to, http(to, '[%s]' % to if ':' in to else to)) for to in targets)",
        seen: "all ECONNREFUSED, all 403 metadata_address",
        told: &[
            told("tcp", "169.254.169.254:7000", "metadata_address"),
            told("tcp", "168.63.129.16:7000", "metadata_address"),
            told("http", "169.254.169.254", "metadata_address"),
            told("http", "fd00:ec2::254", "metadata_address"),
        ],
        ..NONE
    },
    Attempt {
        id: "B3",
        what: "networks of IPv4 that are not of the internet",
        code: "\
seen = each((to, tcp(to, 7000)) for to in (
    '10.0.0.1', '10.255.255.255', '172.16.0.1', '172.31.255.254', '192.168.0.1', '192.168.255.254',
    '100.64.0.1', '100.127.255.254', '192.0.0.1', '192.0.2.1', '192.88.99.1', '198.18.0.5', '198.19.0.1',
    '198.51.100.1', '203.0.113.1', '169.254.1.1', '240.0.0.1', '255.255.255.254'))",
        seen: "all ECONNREFUSED",
        told: &[
            told("tcp", "10.0.0.1:7000", "private_address"),
            told("tcp", "100.64.0.1:7000", "private_address"),
            told("tcp", "240.0.0.1:7000", "private_address"),
        ],
        ..NONE
    },
    Attempt {
        id: "B3",
        what: "the same by UDP, and many hosts at once",
        code: "\
seen = each((to, udp(to, 123)) for to in ('10.0.0.1', '192.168.0.1', '100.64.0.1', '203.0.113.1', '240.0.0.1'))
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for to in ('255.255.255.255', '198.18.0.3', '224.0.0.1', '239.1.2.3'):
    link.sendto(CANARY, (to, 123))
send_frames(*[frame(packet(6, to, syn(to, 7000))) for to in ('224.0.0.1', '255.255.255.255')])",
        seen: "all EHOSTUNREACH",
        told: &[told("udp", "10.0.0.1:123", "private_address")],
        ..NONE
    },
    Attempt {
        id: "B4",
        what: "networks of IPv6 that are not of the internet",
        code: "\
seen = each((to, tcp(to, 7000)) for to in (
    'fd00::1', 'fc00::1', 'fdf1:a5f1:a5f2::3', 'fec0::1', '::2', '100::1', '2001:db8::1', '3fff::1',
    '4000::1', '5f00::1', 'fe00::1'))
link = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for to in ('ff02::1', 'ff05::2', 'ff0e::1', 'fe80::1'):
    link.sendto(CANARY, (to, 7000, 0, socket.if_nametoindex('eth0')))",
        seen: "all ECONNREFUSED",
        told: &[
            told("tcp", "[fd00::1]:7000", "private_address"),
            told("tcp", "[2001:db8::1]:7000", "private_address"),
        ],
        ..NONE
    },
    Attempt {
        id: "B5",
        what: "addresses of IPv4 inside of those of IPv6",
        code: "\
seen = each((to, tcp(to, 7000)) for to in (
    '::ffff:10.0.0.1', '::10.0.0.1', '::ffff:0:10.0.0.1', '64:ff9b::a00:1', '64:ff9b:1::a00:1',
    '2002:a00:1::1', '2002:7f00:1::', '2001::1', '2001:0:a00:1::', '64:ff9b::5db8:d842',
    '2002:5db8:d842::1', '::5db8:d842'))",
        seen: "all ECONNREFUSED",
        told: &[
            told("tcp", "[64:ff9b::a00:1]:7000", "private_address"),
            told("tcp", "[2002:a00:1::1]:7000", "private_address"),
        ],
        ..NONE
    },
    Attempt {
        id: "B6",
        what: "nearly every port of the gateway below 200, and some above",
        code: "\
ports = [port for port in range(1, 200) if port not in (53, 80)] + [1080, 3128, 6000, 7000, 8080, 8443, 9050, 65535]
seen = each((port, tcp(GATEWAY, port)) for port in ports)
seen += ', ' + each((port, udp(GATEWAY, port)) for port in (1, 69, 123, 161, 443, 500, 5353, 6000, 51820))
seen += ', ' + each((port, tcp(GATEWAY6, port)) for port in (22, 81, 6000))
seen += ', ' + each((to, http(to, '198.18.0.1')) for to in (GATEWAY, GATEWAY6))",
        seen: "all ECONNREFUSED, all EHOSTUNREACH, all ECONNREFUSED, all 403 private_address",
        told: &[told("tcp", "198.18.0.1:8080", "private_address")],
        // A few hundred connections.
        waits: true,
        ..NONE
    },
    Attempt {
        id: "B6",
        what: "addresses that other guests have, and names would have",
        code: "seen = each((to, tcp(to, 22)) for to in ('198.18.0.5', '198.18.1.2', '198.19.0.1', 'fdf1:a5f1:a5f2::1'))
# Nobody but the gateway is on the link.
seen += ', ' + tcp('fdf1:a5f1:a5f1::7', 22)",
        seen: "all ECONNREFUSED, EHOSTUNREACH",
        told: &[told("tcp", "198.19.0.1:22", "private_address")],
        ..NONE
    },
    Attempt {
        id: "B7",
        what: "the host's public addresses, and its neighbours'",
        code: "\
seen = each(((to, port), tcp(to, port)) for port in (6000, 22) for to in (
    '81.2.69.142', '81.2.69.129', '81.2.69.143', '2a02:6b8:1::142', '2a02:6b8:1::1'))
seen += ', ' + udp('81.2.69.142', 6000)",
        seen: "all ECONNREFUSED, EHOSTUNREACH",
        told: &[
            told("tcp", "81.2.69.142:6000", "private_address"),
            told("tcp", "[2a02:6b8:1::1]:22", "private_address"),
        ],
        ..NONE
    },
    Attempt {
        id: "B8",
        what: "names whose addresses are private, of anybody",
        code: "\
seen = each((name, ask(name + '.glob.test')) for name in ('ten', 'loop', 'host', 'gateway', 'link'))
seen += ', ' + each((name, ask(name, 'PTR')) for name in (
    '1.0.0.10.in-addr.arpa', '142.69.2.81.in-addr.arpa', '1.0.0.127.in-addr.arpa'))",
        seen: "all REFUSED resolved_to_private, all REFUSED private_address",
        contacts: &[
            "dns ten.glob.test A",
            "dns loop.glob.test A",
            "dns host.glob.test A",
            "dns gateway.glob.test A",
            "dns link.glob.test A",
        ],
        ..NONE
    },
    Attempt {
        id: "C14",
        what: "900 questions at once: so many leave as in some seconds",
        code: "\
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.connect((GATEWAY, 53))
link.settimeout(PATIENCE)
def batch(numbers):
    for number in numbers:
        link.send(question('q%d.evil.test' % number))
    return [told(link.recv(4096)).split()[0] for _ in numbers]
began = time.monotonic()
# Datagrams may be lost that come while the first of them is decided.
codes = batch(range(1))
for start in range(1, 901, 10):
    codes += batch(range(start, start + 10))
most = 500 + 100 * (time.monotonic() - began + 1)
passed, refused = codes.count('NOERROR'), codes.count('SERVFAIL')
seen = 'limited' if passed <= most and passed + refused == 901 else (passed, most, set(codes))
# As long as it takes until something may be asked for again.
time.sleep(1)",
        seen: "limited",
        contacts: &["dns q*"],
        waits: true,
        ..NONE
    },
];

/// Where addresses that are not of the internet are allowed, but those have not been named.
pub const METADATA: &[Attempt] = &[
    Attempt {
        id: "B0",
        what: "(a private network, which it leads to)",
        code: "seen = (tcp('10.0.0.1', 7000), tcp('fd00::1', 7000), tcp(GATEWAY, 6000))",
        seen: "('hello 10.0.0.1:7000', 'hello [fd00::1]:7000', 'hello 127.0.0.1:6000')",
        contacts: &[
            "tcp 10.0.0.1:7000",
            "tcp [fd00::1]:7000",
            "host tcp Ok(127.0.0.1)",
        ],
        ..NONE
    },
    Attempt {
        id: "B2",
        what: "what clouds tell their machines, with private ones allowed",
        code: "\
seen = each(((to, port), tcp(to, port)) for port in (8000, 7000) for to in (
    '169.254.169.254', '169.254.170.2', '100.100.100.200', '168.63.129.16', '192.0.0.192',
    'fd00:ec2::254', '::ffff:169.254.169.254'))
seen += ', ' + udp('169.254.169.254', 123)
seen += ', ' + each(((name, kind), ask(name + '.glob.test', kind))
                    for name, kind in (('meta', 'A'), ('meta', 'AAAA'), ('azure', 'A')))",
        seen: "all ECONNREFUSED, EHOSTUNREACH, all REFUSED metadata_address",
        told: &[
            told("tcp", "169.254.169.254:8000", "metadata_address"),
            told("tcp", "100.100.100.200:7000", "metadata_address"),
            told("dns", "meta.glob.test", "metadata_address"),
        ],
        contacts: &[
            "dns meta.glob.test A",
            "dns meta.glob.test AAAA",
            "dns azure.glob.test A",
        ],
        ..NONE
    },
];
