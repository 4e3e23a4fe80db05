"""Every packet of a network namespace: a process in it that notes them, and what they say.

`python -m tests.end_to_end.capture FILE` notes until SIGTERM; it needs root and Linux.
"""

import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ETH_P_ALL, ETH_P_IP, ETH_P_ARP = 0x0003, 0x0800, 0x0806
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE, PACKET_OUTGOING = 263, 6, 33, 4
LOCAL = "lo"
_RECORD = struct.Struct(">IB16s")


def note(target: Path) -> None:
    """Note every packet on every interface, until SIGTERM; then tell how many the kernel had to drop."""
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ETH_P_ALL))
    heard.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    heard.settimeout(0.1)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    print("ready", flush=True)
    with target.open("wb") as file:
        while True:
            try:
                data, (interface, _, kind, *_) = heard.recvfrom(1 << 18)
            except TimeoutError:
                if ended:  # and nothing is waiting
                    break
                continue
            file.write(_RECORD.pack(len(data), kind == PACKET_OUTGOING, interface.encode()) + data)
    _, drops = struct.unpack("II", heard.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(json.dumps({"drops": drops}), flush=True)


@dataclass
class Stream:
    """One TCP connection's bytes from the namespace outward."""

    source_port: int
    target: tuple[str, int]
    first: int | None = None
    parts: dict[int, bytes] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """In order, without what was sent twice. Fails if a byte between is missing."""
        if self.first is None:
            return b""
        made = b""
        for offset, part in sorted(
            ((number - self.first - 1) % (1 << 32), part) for number, part in self.parts.items()
        ):
            assert offset <= len(made), f"bytes {len(made)} to {offset} of a connection were not captured"
            made += part[len(made) - offset :]
        return made


@dataclass
class Captured:
    """What left a namespace. others: what was neither TCP nor ARP; local: packets on its loopback."""

    streams: dict[tuple[int, str, int], Stream] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    num_local: int = 0
    num_frames: int = 0
    frame_bytes: int = 0

    def add(self, interface: str, frame: bytes) -> None:
        """Take one frame that was sent."""
        if interface == LOCAL:
            self.num_local += 1
            return
        kind = int.from_bytes(frame[12:14], "big")
        if kind == ETH_P_ARP:  # which machine has the gateway's address: says nothing, and not to another network
            return
        packet = frame[14:]
        if kind != ETH_P_IP or packet[9] != socket.IPPROTO_TCP:
            target = socket.inet_ntoa(packet[16:20]) if kind == ETH_P_IP else ""
            port = int.from_bytes(packet[22:24], "big") if kind == ETH_P_IP else 0
            self.others.append(f"ethertype {kind:#06x}, protocol {packet[9]}, to {target}:{port}")
            return
        self.num_frames += 1
        self.frame_bytes += len(frame)
        self._add_segment(packet[: int.from_bytes(packet[2:4], "big")])

    def _add_segment(self, packet: bytes) -> None:
        target, segment = socket.inet_ntoa(packet[16:20]), packet[(packet[0] & 15) * 4 :]
        source_port, port, number = struct.unpack(">HHI", segment[:8])
        stream = self.streams.setdefault((source_port, target, port), Stream(source_port, (target, port)))
        if segment[13] & 2:  # SYN
            stream.first = number
        if payload := segment[(segment[12] >> 4) * 4 :]:
            known = stream.parts.get(number, b"")
            stream.parts[number] = max(known, payload, key=len)


def read(file: Path) -> Captured:
    """What was noted."""
    found, content, at = Captured(), file.read_bytes(), 0
    while at < len(content):
        size, is_outgoing, interface = _RECORD.unpack_from(content, at)
        at += _RECORD.size
        if is_outgoing:
            found.add(interface.rstrip(b"\0").decode(), content[at : at + size])
        at += size
    return found


@contextmanager
def capturing(prefix: tuple[str, ...], file: Path) -> Iterator[None]:
    """Capture in the namespace of `prefix` while the block runs. Fails if a packet was lost."""
    command = [*prefix, sys.executable, "-m", "tests.end_to_end.capture", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert json.loads(said) == {"drops": 0}


def tls_records(stream: bytes) -> list[tuple[int, int]]:
    """Kind and length of every TLS record. Fails if the stream is anything else."""
    found, at = [], 0
    while at < len(stream):
        kind, major, length = stream[at], stream[at + 1], int.from_bytes(stream[at + 3 : at + 5], "big")
        assert kind in {20, 21, 22, 23}, f"{kind} is no kind of a TLS record"
        assert major == 3
        found.append((kind, length))
        at += 5 + length
    assert at == len(stream), "a TLS record is cut off"
    return found


if __name__ == "__main__":
    note(Path(sys.argv[1]))
