"""``warm_client.py SOCKET MODULE [ARGUMENT]...``: hands a command to the server of `warm_commands` and ends as it ends.

Started without site-packages, for it must cost nothing.
"""

import array
import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
    server.sendmsg([len(request).to_bytes(8, "big")], [streams])
    server.sendall(request)
    status = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big", signed=True)
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
