"""Has all that a guest can come to see of a secret: answers in all forms that the host of the
secret gives, and every frame on the wire. It stays in memory and on the disk, and is printed.
"""

import base64
import http.client
import os
import socket
import sys
import threading

KEY, DECOY = os.environ["KEY"], sys.argv[1]
HOST = "api.allowed.test"
DIRECTORY = "/var/tmp/seen"

os.makedirs(DIRECTORY)
frames = open(DIRECTORY + "/frames", "wb", buffering=0)


def capture():
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    ready.set()
    while True:
        frames.write(wire.recv(1 << 17))


ready = threading.Event()
threading.Thread(target=capture, daemon=True).start()
ready.wait()

kept = []
for connect in http.client.HTTPSConnection, http.client.HTTPConnection:
    for path in "/", "/reflect", "/elsewhere", "/?key=" + KEY:
        basic = base64.b64encode(f"user:{KEY}".encode()).decode()
        for credentials in "Bearer " + KEY, "Basic " + basic:
            connection = connect(HOST, timeout=60)
            connection.request("POST", path, KEY, {"Authorization": credentials})
            answer = connection.getresponse()
            kept.append(f"{answer.status} {answer.headers}{answer.read().decode('latin-1')}")
            connection.close()
with open(DIRECTORY + "/answers", "w") as file:
    file.write("\n".join(kept) + "\n" + DECOY)
os.sync()
print("\n".join(kept), flush=True)
print("all seen", flush=True)
# All of it stays until the input ends.
sys.stdin.read()
