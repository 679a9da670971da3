"""Ports for servers that must come back at the same address."""

import random
import socket

BELOW_EPHEMERAL = (20000, 32000)  # connections of others take theirs from above, also while a server is down


def free_port():
    while True:
        port = random.randrange(*BELOW_EPHEMERAL)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
