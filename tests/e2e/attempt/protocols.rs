//! Protocols that are neither names nor connections to what is allowed.

use super::{Attempt, NONE, told};

pub const SEALED: &[Attempt] = &[
    Attempt {
        id: "D1",
        what: "QUIC to a host that is allowed, by TCP",
        code: "seen = (ask('api.allowed.test'), udp('93.184.216.10', 443), udp('2a00:1450::10', 443))",
        seen: "('NOERROR 93.184.216.10', 'EHOSTUNREACH', 'EACCES')",
        told: &[told("udp", ":443", "host_not_allowed")],
        contacts: &["dns api.allowed.test A"],
        ..NONE
    },
    Attempt {
        id: "D2",
        what: "datagrams: STUN, time, DHT, WireGuard, SIP, CoAP, syslog",
        code: "\
seen = each(((to, port), udp(to, port)) for to in ('93.184.216.66', '93.184.216.10')
            for port in (3478, 123, 6881, 51820, 5060, 5683, 514, 1, 65535))",
        seen: "all EHOSTUNREACH",
        told: &[told("udp", "93.184.216.66:3478", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "D2",
        what: "datagrams to the one port that is allowed, and to others",
        code: "\
seen = (udp('93.184.216.12', 123), ask('time.allowed.test'), udp('93.184.216.12', 123),
        udp('93.184.216.12', 124), tcp('93.184.216.12', 123), tcp('93.184.216.12', 7000))",
        seen: "('EHOSTUNREACH', 'NOERROR 93.184.216.12', 'echo', 'EHOSTUNREACH', 'ECONNREFUSED', \
               'ECONNREFUSED')",
        contacts: &["dns time.allowed.test A", "udp 93.184.216.12:123"],
        ..NONE
    },
    Attempt {
        id: "D11",
        what: "FTP, Gopher, dict, mail, shells: ports that are not allowed",
        code: "\
asked_for = ask('port.allowed.test')
seen = each((port, tcp('93.184.216.14', port)) for port in (
    20, 21, 22, 23, 25, 70, 110, 143, 587, 873, 990, 2628, 3306, 5432, 6379, 6667, 6999, 7001, 11211))
seen += ', ' + tcp('93.184.216.14', 7000)",
        seen: "all ECONNREFUSED, hello 93.184.216.14:7000",
        told: &[told("tcp", "93.184.216.14:21", "host_not_allowed")],
        contacts: &["dns port.allowed.test A", "tcp 93.184.216.14:7000"],
        ..NONE
    },
    Attempt {
        id: "D13",
        what: "SOCKS to the gateway, and to an allowed host on the ports of HTTP",
        code: "\
first = (b'\\5\\1\\0', b'\\5\\1\\0\\5\\1\\0\\3\\x09evil.test\\1\\xbb', b'\\4\\1\\1\\xbb\\x5d\\xb8\\xd8\\x42c4n4ry\\0',
         b'\\4\\1\\1\\xbb\\0\\0\\0\\1c4n4ry\\0evil.test\\0.allowed.test\\0')
to_gateway = each(((to, port), tcp(to, port, first[0])) for to in (GATEWAY, GATEWAY6)
                  for port in (1080, 1081, 3128, 8000, 8080, 8118, 8888, 9050))
answers = {raw_http(to, data, port)[:3] for to in (GATEWAY, '93.184.216.10') for port in (80, 443) for data in first}
seen = (to_gateway, sorted(answers))",
        seen: "('all ECONNREFUSED', ['400', 'ECO'])",
        told: &[told("tcp", "198.18.0.1:1080", "host_not_allowed")],
        contacts: &["tcp 93.184.216.10:80*", "tcp 93.184.216.10:443*"],
        waits: true,
        ..NONE
    },
    Attempt {
        id: "D19",
        what: "the disk that all guests of a root have",
        code: "\
import fcntl
def written(path):
    try:
        with open(path, 'r+b', 0) as disk:
            # BLKROSET: to be written to.
            try:
                fcntl.ioctl(disk, 0x125d, struct.pack('i', 0))
            except OSError:
                pass
            disk.write(b'c4n4ry')
            os.fsync(disk.fileno())
            return 'written'
    except OSError as problem:
        return error(problem)
disks = sorted(os.listdir('/sys/block'))
shared = [line.split()[2] for line in open('/proc/self/mountinfo') if ' - virtiofs ' in line or ' - 9p ' in line]
seen = (disks, [written('/dev/' + disk) for disk in disks], shared)",
        seen: "(['vda'], ['EBUSY'], [])",
        ..NONE
    },
    Attempt {
        id: "D8",
        what: "data in the first segment, to a host that is not allowed",
        code: "\
open('/proc/sys/net/ipv4/tcp_fastopen', 'w').write('5')
stream = socket.socket()
stream.settimeout(PATIENCE)
try:
    stream.sendto(CANARY, socket.MSG_FASTOPEN, ('93.184.216.66', 7000))
    seen = stream.recv(100)
except OSError as problem:
    seen = error(problem)",
        seen: "ECONNREFUSED",
        told: &[told("tcp", "93.184.216.66:7000", "host_not_allowed")],
        ..NONE
    },
    Attempt {
        id: "D18",
        what: "the host's and others' ends of vsock, by any number",
        code: "\
def vsock(cid, port):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as stream:
        stream.settimeout(5)
        try:
            stream.connect((cid, port))
            stream.sendall(CANARY)
            return stream.recv(100) and 'answered' or 'ended'
        except OSError as problem:
            return 'refused' if problem.errno else 'silence'
seen = each(((cid, port), vsock(cid, port)) for cid in (0, 2, 4, 1000, 0xfffffffe)
            for port in (0, 1, 22, 1023, 1024, 1025, 5000, 9999, 0xfffffffe))",
        seen: "all refused",
        waits: true,
        ..NONE
    },
];

/// Where the internet may be reached: nothing but streams, datagrams and names leads there.
pub const OPEN: &[Attempt] = &[
    Attempt {
        id: "D3",
        what: "echo, timestamp, redirect and unreachable to the internet",
        code: "\
def icmp(kind, code, data=b'\\0\\1\\0\\1' + CANARY):
    body = bytes([kind, code, 0, 0]) + data
    return body[:2] + struct.pack('>H', checksum(body)) + body[4:]
inner = packet(17, '93.184.216.10', datagram('93.184.216.10', 7000, CANARY))
kinds = [icmp(8, 0), icmp(13, 0, b'\\0\\1\\0\\1' + b'\\0' * 12), icmp(5, 1, socket.inet_aton('10.0.0.1') + inner),
         icmp(3, 4, b'\\0\\0\\2\\0' + inner), icmp(15, 0), icmp(17, 0), icmp(0, 0), icmp(10, 0)]
seen = heard([frame(packet(1, '93.184.216.10', body)) for body in kinds], 0x0800, 1)
# The gateway answers an echo by itself, and nothing else.
seen = (seen, heard([frame(packet(1, GATEWAY, body)) for body in kinds], 0x0800, 1))",
        seen: "(0, 1)",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "D3",
        what: "the same of IPv6",
        code: "\
link = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
for kind in (128, 1, 2, 137, 138, 139, 141):
    link.sendto(bytes([kind, 0, 0, 0, 0, 1, 0, 1]) + CANARY * 8, ('2a00:1450::10', 0))
seen = 'sent'",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D4",
        what: "DHCPv6 and names of the link",
        code: "\
link = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
index = socket.if_nametoindex('eth0')
for to, port in (('ff02::1:2', 547), ('ff05::1:3', 547), ('ff02::fb', 5353)):
    link.sendto(CANARY, (to, port, 0, index))
seen = 'sent'",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D4",
        what: "solicitations of routers",
        code: "\
index = socket.if_nametoindex('eth0')
raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
raw.sendto(bytes([133, 0, 0, 0, 0, 0, 0, 0]), ('ff02::2', 0, 0, index))
seen = 'sent'",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D4",
        what: "advertisements of routers, of our own",
        code: "\
index = socket.if_nametoindex('eth0')
raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
raw.sendto(bytes([134, 0, 0, 0]) + b'\\0' * 12, ('ff02::1', 0, 0, index))
seen = 'sent'",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D4",
        what: "addresses to which there is no route but the default one",
        code: "\
seen = each((to, tcp(to, 7000)) for to in ('fd00:1::1', '2001:db8::1', 'fec0::1'))",
        seen: "all ECONNREFUSED",
        ..NONE
    },
    Attempt {
        id: "D5",
        what: "SCTP, DCCP, GRE, ESP, AH, IPIP, IGMP, and numbers of nobody",
        code: "\
kinds = (0, 2, 4, 33, 41, 46, 47, 50, 51, 89, 94, 103, 108, 112, 115, 132, 136, 253, 254, 255)
send_frames(*[frame(packet(kind, to, CANARY * 4)) for kind in kinds for to in ('93.184.216.10', GATEWAY)])
inner = packet(6, '10.0.0.1', syn('10.0.0.1', 7000))
seen = send_frames(frame(packet(4, '93.184.216.10', inner)), frame(packet(47, '93.184.216.10', b'\\0\\0\\10\\0' + inner)))",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D5",
        what: "what hides behind extension headers of IPv6",
        code: "\
source, to = (socket.inet_pton(socket.AF_INET6, text) for text in ('fdf1:a5f1:a5f1::2', '2a00:1450::10'))
inside = struct.pack('>HHHH', 4000, 7000, 14, 0) + CANARY
def six(next_header, body):
    return frame(struct.pack('>IHBB', 6 << 28, len(body), next_header, 64) + source + to + body, 0x86dd)
seen = send_frames(
    six(0, bytes([17, 0, 1, 4, 0, 0, 0, 0]) + inside), six(43, bytes([17, 0, 0, 0, 0, 0, 0, 0]) + inside),
    six(44, bytes([17, 0, 0, 0, 0, 0, 0, 9]) + inside), six(60, bytes([17, 0, 1, 4, 0, 0, 0, 0]) + inside),
    six(59, inside), six(4, inside), six(41, inside), six(132, inside))",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D6",
        what: "frames of VLANs, of and for others, too short, of no protocol",
        code: "\
good = packet(17, '93.184.216.10', datagram('93.184.216.10', 7000, CANARY))
other = bytes.fromhex('02f1a5000077')
frames = [
    frame(struct.pack('>HH', 7, 0x0800) + good, 0x8100), frame(struct.pack('>HH', 7, 0x0800) + good, 0x88a8),
    frame(good, to=other), frame(good, source=b'\\xff' * 6), frame(good, source=b'\\1\\0\\x5e\\0\\0\\1'),
    frame(good, 0x88cc, to=bytes.fromhex('0180c200000e')), frame(good, 0x0026, to=bytes.fromhex('0180c2000000')),
    frame(good, 0x8864), frame(good, 0x0842), frame(good, 0x86dd), frame(good[:19]), frame(good[:27]),
    frame(b''), frame(b'\\x45'), frame(b'\\x4f' + good[1:]), frame(b'\\x41' + good[1:]),
    frame(good[:2] + b'\\xff\\xff' + good[4:]), frame(good[:10] + b'\\0\\0' + good[12:])]
seen = send_frames(*frames)",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D6",
        what: "the addresses of others, and those of nobody, as sources",
        code: "\
frames = []
for source in ('0.0.0.0', '255.255.255.255', '224.0.0.1', '239.9.9.9', '127.0.0.1', GATEWAY, '198.18.0.3',
               '192.168.7.7', '93.184.216.66', '81.2.69.142'):
    frames.append(frame(packet(17, '93.184.216.10', datagram('93.184.216.10', 7000, CANARY, source), source)))
    frames.append(frame(packet(6, '93.184.216.10', syn('93.184.216.10', 7000, source, CANARY), source)))
seen = send_frames(*frames)",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D6",
        what: "the gateway's address taken, by ARP and by neighbours",
        code: "\
def arp(operation, sender, target):
    return frame(struct.pack('>HHBBH', 1, 0x0800, 6, 4, operation) + GUEST_MAC + socket.inet_aton(sender)
                 + GATEWAY_MAC + socket.inet_aton(target), 0x0806, to=b'\\xff' * 6)
seen = heard([arp(2, GATEWAY, GATEWAY), arp(1, GATEWAY, GATEWAY), arp(2, '81.2.69.142', '198.18.0.2'),
              arp(1, '198.18.0.2', '198.18.0.9'), arp(1, '198.18.0.2', '93.184.216.10'),
              arp(9, '198.18.0.2', GATEWAY), frame(b'\\0\\1\\10\\0', 0x0806)], 0x0806)",
        // The gateway says that the address is its own, and nobody says that others are.
        seen: "1",
        waits: true,
        ..NONE
    },
    Attempt {
        id: "D7",
        what: "fragments: overlapping, tiny, and 2000 that never end",
        code: "\
to = '93.184.216.10'
whole = datagram(to, 7000, CANARY * 20)
def part(data, offset, more, number):
    return frame(packet(17, to, data, part=(0x2000 if more else 0) | offset, number=number))
seen = send_frames(
    part(whole[:8], 0, True, 1), part(whole[8:], 1, False, 1),
    part(whole[:64], 0, True, 2), part(whole[:64], 4, True, 2), part(whole[64:], 8, False, 2),
    part(whole, 0, True, 3), part(whole, 8191, False, 4),
    frame(packet(6, to, syn(to, 7000)[:8], part=0x2000, number=5)),
    frame(packet(6, to, syn(to, 7000)[8:], part=1, number=5)),
    *[part(whole[:64], 0, True, number) for number in range(100, 2100)])",
        seen: "sent",
        ..NONE
    },
    Attempt {
        id: "D8",
        what: "data in the first segment: it arrives, once",
        code: "\
open('/proc/sys/net/ipv4/tcp_fastopen', 'w').write('5')
stream = socket.socket()
stream.settimeout(PATIENCE)
stream.sendto(b'in the first\\n', socket.MSG_FASTOPEN, ('93.184.216.10', 7000))
lines = stream.makefile()
hello = lines.readline()
stream.shutdown(socket.SHUT_WR)
seen = (hello + lines.read()).split('\\n')",
        seen: "['hello 93.184.216.10:7000', 'in the first', '']",
        contacts: &["tcp 93.184.216.10:7000"],
        ..NONE
    },
    Attempt {
        id: "D8",
        what: "urgent data, and ends in the middle",
        code: "\
with socket.create_connection(('93.184.216.10', 7000), PATIENCE) as stream:
    lines = stream.makefile('rb')
    first = lines.readline()
    stream.sendall(b'one ')
    stream.send(b'!', socket.MSG_OOB)
    stream.sendall(b' two\\n')
    seen = lines.readline().decode()
for _ in range(50):
    stream = socket.create_connection(('93.184.216.10', 7000), PATIENCE)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    stream.sendall(b'half')
    stream.close()",
        seen: "one ! two\n",
        contacts: &["tcp 93.184.216.10:7000"],
        ..NONE
    },
    Attempt {
        id: "D8",
        what: "segments that overlap and say something else",
        code: "\
to, port = '93.184.216.10', 7000
stream = socket.create_connection((to, port), PATIENCE)
lines = stream.makefile('rb')
first = lines.readline()
# What the next byte is numbered, by what is there to move connections elsewhere.
REPAIR, QUEUE, SEQ = 19, 20, 21
def numbered():
    stream.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
    numbers = []
    for queue in (2, 1):
        stream.setsockopt(socket.IPPROTO_TCP, QUEUE, queue)
        numbers.append(stream.getsockopt(socket.IPPROTO_TCP, SEQ) & 0xffffffff)
    stream.setsockopt(socket.IPPROTO_TCP, REPAIR, -1)
    return numbers
def segment(seq, ack, data):
    source, own = stream.getsockname()
    body = struct.pack('>HHIIBBHHH', own, port, seq, ack, 0x50, 0x18, 500, 0, 0) + data
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack('>BBH', 0, 6, len(body))
    return frame(packet(6, to, body[:16] + struct.pack('>H', checksum(pseudo + body)) + body[18:]))
seq, ack = numbered()
stream.sendall(b'first ')
said = lines.read(6)
# It was sent already: another text in its place, and behind it, is not.
send_frames(segment(seq, ack, b'FIRST '), segment(seq + 2, ack, b'XXXX'), segment(seq - 5000, ack, b'OLD'))
stream.sendall(b'second\\n')
seen = said + lines.readline()",
        seen: "b'first second\\n'",
        contacts: &["tcp 93.184.216.10:7000"],
        ..NONE
    },
    Attempt {
        id: "D8",
        what: "connections that never take what they are sent",
        code: "\
held = []
for _ in range(10):
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stream.settimeout(PATIENCE)
    stream.connect(('93.184.216.10', 7001))
    held.append(stream)
seen = tcp('93.184.216.10', 7000)",
        seen: "hello 93.184.216.10:7000",
        contacts: &["tcp 93.184.216.10:7000", "tcp 93.184.216.10:7001"],
        ..NONE
    },
    Attempt {
        id: "D8",
        what: "5000 first segments that nobody goes on with",
        code: "\
to = '93.184.216.66'
def flood(number):
    body = struct.pack('>HHIIBBHHH', 10000 + number, 9, number, 0, 0x50, 2, 64000, 0, 0)
    pseudo = socket.inet_aton('198.18.0.2') + socket.inet_aton(to) + struct.pack('>BBH', 0, 6, len(body))
    return frame(packet(6, to, body[:16] + struct.pack('>H', checksum(pseudo + body)) + body[18:]))
seen = send_frames(*[flood(number) for number in range(5000)])",
        seen: "sent",
        contacts: &["tcp 93.184.216.66:9"],
        waits: true,
        ..NONE
    },
];
