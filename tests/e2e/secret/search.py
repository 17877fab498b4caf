"""Looks for byte sequences where nobody is meant to find them.

Standard input has a line of JSON: {"masked": {NAME: BASE64}, "places": [PLACE]}. Sequences come
masked, and memory is masked before it is looked at: what looks for them does not have them, so
that it can be looked through itself. Prints for each place what was looked at and what was
found: {PLACE: {"bytes": N, "unread": N, "found": {NAME: COUNT}}}. Places:

    process PID       memory of a process
    processes         memory of all processes but this one
    devices           all block devices
    physical          /dev/mem
    kernel            /proc/kcore
    files SECS DIR    what was changed within so many seconds, below a directory
"""

import base64
import json
import os
import struct
import sys
import time

CHUNK = 1 << 20
PAGE = 4096
MASK = bytes(byte ^ 0xA5 for byte in range(256))
# Of x86-64, a direct map and mappings that are bigger than any memory of a guest.
MOST = 1 << 40


class Search:
    def __init__(self, masked):
        self.masked = {name: base64.b64decode(text) for name, text in masked.items()}
        self.overlap = max(map(len, self.masked.values())) - 1
        self.bytes = self.unread = 0
        self.found = {}

    def look(self, data, known):
        """Counts what ends after the first `known` bytes, which were looked at before."""
        data = data.translate(MASK)
        for name, sequence in self.masked.items():
            at = data.find(sequence, max(0, known - len(sequence) + 1))
            while at >= 0:
                self.found[name] = self.found.get(name, 0) + 1
                at = data.find(sequence, at + 1)

    def area(self, file, start, end):
        """What a file has from one place to another, without what cannot be read."""
        rest = b""
        while start < end:
            data = self.read(file, start, min(CHUNK, end - start))
            if not data:
                # A page of a device, or one that is not there.
                skipped = min(PAGE - start % PAGE, end - start)
                self.unread += skipped
                start += skipped
                rest = b""
                continue
            self.bytes += len(data)
            self.look(rest + data, len(rest))
            rest = (rest + data)[-self.overlap:]
            start += len(data)

    @staticmethod
    def read(file, start, length):
        while length > 0:
            try:
                return os.pread(file, length, start)
            except OSError:
                # There may be less that can be.
                length = length // 2 // PAGE * PAGE
        return b""

    def whole(self, path, areas=None):
        file = os.open(path, os.O_RDONLY)
        try:
            if areas is None:
                areas = [(0, os.lseek(file, 0, os.SEEK_END))]
            for start, end in areas:
                self.area(file, start, end)
        finally:
            os.close(file)

    def process(self, pid):
        areas = []
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if end < 1 << 63 and "[vvar" not in line:
                    areas.append((start, end))
        self.whole(f"/proc/{pid}/mem", areas)

    def processes(self):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            # Threads of the kernel have no memory of their own, and some end meanwhile.
            if int(pid) != os.getpid():
                try:
                    self.process(pid)
                except (FileNotFoundError, ProcessLookupError):
                    pass

    def devices(self):
        for name in os.listdir("/sys/block"):
            self.whole("/dev/" + name)

    def physical(self):
        with open("/proc/iomem") as ranges:
            parts = [line.split() for line in ranges if line.endswith(": System RAM\n")]
        ends = ([int(part, 16) for part in parts[0].split("-")] for parts in parts)
        self.whole("/dev/mem", [(start, end + 1) for start, end in ends])

    def kernel(self):
        with open("/proc/kcore", "rb") as core:
            head = core.read(64)
            (offset,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            core.seek(offset)
            table = core.read(size * count)
        areas = []
        for at in range(0, len(table), size):
            kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", table, at)
            if kind == 1 and length < MOST:
                areas.append((start, start + length))
        self.whole("/proc/kcore", areas)

    def files(self, seconds, directory):
        since = time.time() - int(seconds)
        for parent, _, names in os.walk(directory):
            for name in names:
                path = os.path.join(parent, name)
                status = os.lstat(path)
                if status.st_ctime >= since and os.path.isfile(path):
                    self.whole(path)


def main():
    asked = json.loads(sys.stdin.readline())
    result = {}
    for place in asked["places"]:
        search = Search(asked["masked"])
        kind, *words = place.split(" ")
        getattr(search, kind)(*words)
        result[place] = {"bytes": search.bytes, "unread": search.unread, "found": search.found}
    print(json.dumps(result))


main()
