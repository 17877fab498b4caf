"""Prints a line for every path below a directory: everything that a file has
that an image can carry. Paths below the other arguments are left out."""
import hashlib
import os
import stat
import sys

root, skip = os.fsencode(sys.argv[1]), {os.fsencode(path) for path in sys.argv[2:]}


def show(path):
    full = os.path.join(root, path)
    info = os.lstat(full)
    words = [
        "%06o" % info.st_mode,
        "%d:%d" % (info.st_uid, info.st_gid),
        "%d.%09d" % divmod(info.st_mtime_ns, 10**9),
    ]
    if not stat.S_ISDIR(info.st_mode):
        words.append("links=%d" % info.st_nlink)
    if stat.S_ISREG(info.st_mode):
        content = hashlib.sha256()
        with open(full, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        words.append("%d %s" % (info.st_size, content.hexdigest()[:32]))
    if stat.S_ISLNK(info.st_mode):
        words.append("-> %r" % os.readlink(full))
    if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        words.append("%d,%d" % (os.major(info.st_rdev), os.minor(info.st_rdev)))
    for name in sorted(os.listxattr(full, follow_symlinks=False)):
        words.append("%s=%s" % (name, os.getxattr(full, name, follow_symlinks=False).hex()))
    print(repr(path)[1:], *words)


show(b"")
for directory, directories, files in os.walk(root):
    below = os.path.relpath(directory, root).replace(b"/", b"/") if directory != root else b""
    directories[:] = sorted(d for d in directories if os.path.join(below, d) not in skip)
    for name in sorted(directories + files):
        if os.path.join(below, name) not in skip:
            show(os.path.join(below, name))
