"""Writes the tars of two layers over a Debian with Python: what a Dockerfile
does to it, and what image formats are bad at."""
import io
import sys
import tarfile

base, upper, top = sys.argv[1:]
# cap_net_raw+ep, revision 2.
CAPABILITY = bytes([1, 0, 0, 2, 0, 32] + [0] * 14).decode("latin1")


class Layer(tarfile.TarFile):
    def put(self, name, data=b"", kind=tarfile.REGTYPE, mode=0o644, owner=(0, 0), link="",
            mtime=1700000000.123456789, device=(0, 0), attributes=None):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.mtime = kind, mode, link, mtime
        entry.uid, entry.gid = owner
        entry.size = len(data)
        entry.devmajor, entry.devminor = device
        for key, value in (attributes or {}).items():
            entry.pax_headers["SCHILY.xattr." + key] = value
        self.addfile(entry, io.BytesIO(data))


def layer(path):
    return Layer.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8",
                      errors="surrogateescape")


DIR, LINK, SYMLINK = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE

with tarfile.open(base) as below:
    python = below.extractfile("./usr/bin/python3.11").read()

with layer(upper) as tar:
    tar.put("srv", kind=DIR, mode=0o755)
    tar.put("srv/data", b"one\n" * 1000, owner=(1000, 1001))
    tar.put("srv/hard", kind=LINK, link="srv/data")
    tar.put("srv/setuid", python, mode=0o6755)
    tar.put("srv/capable", python, mode=0o755,
            attributes={"security.capability": CAPABILITY, "user.note": "hello"})
    tar.put("srv/sticky", kind=DIR, mode=0o1777)
    tar.put("srv/empty")
    tar.put("srv/old", mtime=-86400)
    tar.put("srv/absolute", kind=SYMLINK, mode=0o777, link="/srv/data")
    tar.put("srv/dangling", kind=SYMLINK, mode=0o777, link="../../nowhere", owner=(7, 8))
    tar.put("srv/null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    tar.put("srv/disk", kind=tarfile.BLKTYPE, device=(8, 1), mode=0o660, owner=(0, 6))
    tar.put("srv/fifo", kind=tarfile.FIFOTYPE, mode=0o600)
    tar.put("srv/" + "long" * 60, b"long name")
    tar.put("srv/latin1-\udce4", b"no UTF-8")
    tar.put("srv/big-owner", owner=(3000000000, 4000000000))
    tar.put("srv/zeros", bytes(3 << 20))
    tar.put("opaque", kind=DIR, mode=0o755)
    tar.put("opaque/below", b"gone")
    tar.put("replaced", kind=DIR, mode=0o700)
    tar.put("replaced/file", b"gone")
    # What a Dockerfile removes that a layer below has.
    tar.put("usr/share/.wh.doc")

with layer(top) as tar:
    tar.put("opaque", kind=DIR, mode=0o750, owner=(5, 5))
    tar.put("opaque/.wh..wh..opq")
    tar.put("opaque/new", b"new")
    tar.put("srv/.wh.empty")
    tar.put("replaced", b"a file now")
    tar.put("srv/data", b"two\n", mode=0o400)
    tar.put("etc", kind=DIR, mode=0o755)
    tar.put("etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
    tar.put("etc/group", b"root:x:0:\napp:x:1001:\nextra:x:2000:app\n")
