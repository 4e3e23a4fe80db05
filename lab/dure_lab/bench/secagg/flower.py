"""Flower's SecAgg+ (flwr 1.41), one client and the server: its primitives in the order of `secaggplus_mod` and
`SecAggPlusWorkflow`, with their default ranges, without messages. `tests/lab` compares a client with the mod itself.

What differs from a real run and does not change what is timed: other clients' key shares are random bytes of the right
size unless the server needs them; their vectors carry no pairwise masks, which cancel; and the firms of one update
have one seed.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

from dure_lab.bench.secagg.arm import CLIP, Arm, Case, Stopwatch
from dure_protocols.errors import MisuseError

TARGET_RANGE = 1 << 22
MOD_RANGE = 1 << 32
_SEED_SHARE, _KEY_SHARE = 4 + 48, 4 + 320
"""Bytes of a share of a seed and of a private key in PEM."""

Vector = list[NDArray[np.int64]]


def regular_degree(firms: int) -> int:
    """Shares a client makes on a k-regular graph: an odd number near 2 log2 n, itself included."""
    return 2 * (firms - 1).bit_length() + 1


def threshold_of(shares: int) -> int:
    """Shares that recover a secret: the same part as in Dure's threshold mode."""
    return 2 * shares // 3 + 1


@dataclass(frozen=True)
class Peer:
    """A neighbour as a client knows it: its node, both public keys (PEM), and its encrypted shares for the client."""

    node: int
    keys: tuple[bytes, bytes]
    ciphertext: bytes = b""


@dataclass(repr=False)
class FlowerClient:
    """What a client knows in a round. Methods follow the mod's stages."""

    node: int
    shares: int
    sk1: bytes = b""
    sk2: bytes = b""
    seed: bytes = b""
    secrets: dict[int, bytes] = field(default_factory=dict)

    def set_up(self) -> tuple[bytes, bytes]:
        """Make two key pairs. Returns the public keys."""
        (sk1, pk1), (sk2, pk2) = generate_key_pairs(), generate_key_pairs()
        self.sk1, self.sk2 = private_key_to_bytes(sk1), private_key_to_bytes(sk2)
        return public_key_to_bytes(pk1), public_key_to_bytes(pk2)

    def share_keys(self, peers: Sequence[Peer]) -> list[bytes]:
        """Share the self mask's seed and the first private key. Returns a ciphertext a neighbour."""
        self.seed = os.urandom(32)
        seed_shares = create_shares(self.seed, threshold_of(self.shares), self.shares)
        key_shares = create_shares(self.sk1, threshold_of(self.shares), self.shares)
        ciphertexts = []
        for peer, seed_share, key_share in zip(peers, seed_shares[1:], key_shares[1:], strict=True):
            shared = generate_shared_key(bytes_to_private_key(self.sk2), bytes_to_public_key(peer.keys[1]))
            self.secrets[peer.node] = shared
            plaintext = share_keys_plaintext_concat(self.node, peer.node, seed_share, key_share)
            ciphertexts.append(encrypt(shared, plaintext))
        return ciphertexts

    def take_shares(self, peers: Sequence[Peer]) -> None:
        """Decrypt what the neighbours sent."""
        for peer in peers:
            plaintext = decrypt(self.secrets[peer.node], peer.ciphertext)
            source, destination, _, _ = share_keys_plaintext_separate(plaintext)
            if (source, destination) != (peer.node, self.node):
                raise MisuseError(f"node {peer.node}'s share is from {source} for {destination}")

    def quantise(self, update: NDArray[np.float32], weight: float) -> Vector:
        """The weight, and the weighted and quantised update."""
        ratio = round(weight * TARGET_RANGE)
        weighted = parameters_multiply([update], ratio / TARGET_RANGE)
        return factor_combine(ratio, quantize(weighted, CLIP, TARGET_RANGE))

    def mask(self, vector: Vector, peers: Sequence[Peer]) -> Vector:
        """Add the self mask, and add or subtract one mask a neighbour."""
        shapes = get_parameters_shape(vector)
        vector = parameters_addition(vector, pseudo_rand_gen(self.seed, MOD_RANGE, shapes))
        for peer in peers:
            shared = generate_shared_key(bytes_to_private_key(self.sk1), bytes_to_public_key(peer.keys[0]))
            mask = pseudo_rand_gen(shared, MOD_RANGE, shapes)
            combine = parameters_addition if self.node > peer.node else parameters_subtraction
            vector = combine(vector, mask)
        return parameters_mod(vector, MOD_RANGE)


class FlowerArm(Arm):
    """One client of SecAgg+ with `shares - 1` neighbours, and the server. `shares` left out: everyone's neighbour."""

    client_parts = ("keys", "quantise", "masks", "serialise")
    server_parts = ("add", "shares", "unmask")

    def __init__(self, case: Case, shares: int | None = None) -> None:
        self._shares = shares or case.firms
        self._case = case
        self._client = FlowerClient(0, self._shares)
        self._peers = [_stranger(node) for node in range(1, self._shares)]
        self._seeds = [os.urandom(32) for _ in range(case.different)]
        self._seed_shares = [create_shares(seed, threshold_of(self._shares), self._shares) for seed in self._seeds]
        self._uploads = [self._self_masked(firm) for firm in range(case.different)]
        self._total: Vector = []

    @property
    def extrapolated_from(self) -> Mapping[str, int]:
        """The time for all firms' seeds follows from that for the first few."""
        return {"recovered_seeds": len(self._seeds)} if len(self._seeds) < self._case.firms else {}

    def client(self, watch: Stopwatch) -> None:
        """Stages 0 to 2 of the mod, as client 0."""
        client, case = self._client, self._case
        with watch("keys"):
            client.set_up()
            client.share_keys(self._peers)
        peers = [self._answering(peer) for peer in self._peers]
        with watch("keys"):
            client.take_shares(peers)
        with watch("quantise"):
            vector = client.quantise(case.update(0), case.weight(0))
        with watch("masks"):
            vector = client.mask(vector, peers)
        with watch("serialise"):
            [ndarray_to_bytes(part) for part in vector]

    def server(self, watch: Stopwatch) -> None:
        """Stages 2 and 3 of the workflow without a drop-out."""
        with watch("add"):
            total: Vector = []
            for firm in range(self._case.firms):
                vector = [bytes_to_ndarray(part) for part in self._uploads[firm % len(self._uploads)]]
                total = parameters_addition(total, vector) if total else vector
            total = parameters_mod(total, MOD_RANGE)
        with watch("shares"):
            seeds = [combine_shares(shares) for shares in self._seed_shares]
        watch.seconds["shares"] *= self._case.firms / len(seeds)
        with watch("unmask"):
            for firm in range(self._case.firms):
                mask = pseudo_rand_gen(seeds[firm % len(seeds)], MOD_RANGE, get_parameters_shape(total))
                total = parameters_subtraction(total, mask)
            total = parameters_mod(total, MOD_RANGE)
        self._total = total

    def decode(self, watch: Stopwatch) -> NDArray[np.float32]:
        """The server's last step."""
        with watch("decode"):
            ratio, parameters = factor_extract(self._total)
            (mean,) = dequantize(parameters, CLIP, TARGET_RANGE)
            mean += -(self._case.firms - 1) * CLIP
            mean *= TARGET_RANGE / ratio
        return mean.astype(np.float32)

    @property
    def vector_bytes(self) -> int:
        """Eight bytes a parameter."""
        return sum(map(len, self._uploads[0]))

    def _self_masked(self, firm: int) -> list[bytes]:
        client = FlowerClient(firm, self._shares, seed=self._seeds[firm])
        vector = client.quantise(self._case.update(firm), self._case.weight(firm))
        return [ndarray_to_bytes(part) for part in client.mask(vector, ())]

    def _answering(self, peer: Peer) -> Peer:
        """The neighbour with its shares for the client."""
        shares = share_keys_plaintext_concat(peer.node, 0, os.urandom(_SEED_SHARE), os.urandom(_KEY_SHARE))
        return Peer(peer.node, peer.keys, encrypt(self._client.secrets[peer.node], shares))


def _stranger(node: int) -> Peer:
    (_, pk1), (_, pk2) = generate_key_pairs(), generate_key_pairs()
    return Peer(node, (public_key_to_bytes(pk1), public_key_to_bytes(pk2)))
