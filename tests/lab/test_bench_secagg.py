"""The benchmark's arms sum right and do what they say: what is timed is the real thing. No clock is looked at."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState, _collect_masked_vectors
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.ndarrays_arithmetic import factor_extract, parameters_addition, parameters_mod
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from typer.testing import CliRunner

from dure_lab.bench.secagg import flower
from dure_lab.bench.secagg.arm import CLIP, COUNT_CAP, Case
from dure_lab.bench.secagg.arms import CKKS, FLOAT32, FLOWER, FLOWER_REGULAR, OURS, SAME_CODEC, has
from dure_lab.bench.secagg.ckks import is_installed
from dure_lab.bench.secagg.memory import peak_of
from dure_lab.bench.secagg.rehearsal import rehearse
from dure_lab.bench.secagg.result import SecAggBenchmark
from dure_lab.bench.secagg.run import bench_secagg
from dure_lab.cli import app
from dure_protocols.errors import MisuseError

STEP = 2 / (2**12 - 2)
"""Of the default codec, over its clip."""
BLOCK_BYTES = 8 << 20
"""Far below a vector of the sizes below, far above what a block-wise pass needs."""


@pytest.fixture(scope="module")
def small():
    """A run of every arm that can run."""
    return bench_secagg([3, 5, 17], [2000], repetitions=2, memory=False)


def test_every_arm_comes_to_the_same_mean(small):
    for case in small.cases:
        for name, arm in case.arms.items():
            assert arm.largest_error < (STEP if name in {OURS, SAME_CODEC} else 1e-4), (case.firms, name)


def test_our_unmasked_sum_is_the_sum_of_the_same_codec_in_the_clear_and_its_tag_holds(small):
    assert all(case.sums_equal and case.tag_holds for case in small.cases)


def test_an_arm_that_cannot_run_is_left_out(small):
    expected = {OURS, FLOWER, FLOAT32, SAME_CODEC, *([CKKS] if is_installed() else [])}
    assert {name for case in small.cases for name in case.arms} == expected
    assert has(Case(50, 10, 1), FLOWER_REGULAR)
    assert not has(Case(3, 2_000_000, 1), CKKS)


def test_more_than_sixteen_firms_run_in_threshold_mode(small):
    assert [case.mode for case in small.cases] == ["retry", "retry", "threshold"]


def test_the_bytes_are_those_of_the_vector_and_of_encoded_messages(small):
    three = small.cases[0]
    assert three.traffic.vector_up == 2 * 2000
    assert three.arms[FLOWER].bytes_per_parameter == pytest.approx(8, rel=0.1)
    behind_the_fields = three.arms[OURS].vector_bytes - three.traffic.vector_up
    assert three.traffic.other_up == behind_the_fields + rehearse(3, 1).rounds[-1].bytes_up


def test_every_ratio_whose_arms_ran_is_there(small):
    for case in small.cases:
        missing = {name for name, value in case.ratios if value is None}
        assert missing == {
            "secagg_regular_over_client",
            *([] if is_installed() else ["ckks_over_client"]),
        }


def test_the_same_seed_deals_the_same_updates():
    assert np.array_equal(Case(3, 50, 7).update(2), Case(3, 50, 7).update(2))
    assert not np.array_equal(Case(3, 50, 7).update(2), Case(3, 50, 8).update(2))


def test_an_unknown_arm_is_refused():
    with pytest.raises(MisuseError, match="no arm is called rot13"):
        bench_secagg([3], [10], repetitions=1, arms=["rot13"])


def test_the_command_prints_json_that_reads_back():
    arguments = ["bench", "secagg", "--firms", "3", "--parameters", "500", "--repeats", "1", "--no-memory", "--json"]
    done = CliRunner().invoke(app, arguments)
    result = SecAggBenchmark.model_validate(json.loads(done.stdout))
    assert [(case.firms, case.parameters) for case in result.cases] == [(3, 500)]
    assert list(json.loads(done.stdout)["cases"][0])[:3] == ["firms", "parameters", "ratios"]


@pytest.mark.parametrize("role", ["client", "server"])
def test_our_scratch_memory_does_not_grow_with_the_vector_or_the_firms(role):
    for firms in (3, 9):
        peak = peak_of(OURS, role, Case(firms, 8_000_000, 1))
        assert peak.allocated - peak.result < BLOCK_BYTES
        assert peak.resident - peak.result < BLOCK_BYTES


def test_the_memory_meter_sees_what_an_arm_holds():
    case = Case(3, 2_000_000, 1)
    assert peak_of(FLOWER, "client", case).resident > 2 * 8 * case.parameters


class FlowerPeers:
    """Three of Flower's clients that have exchanged keys and shares."""

    def __init__(self):
        self.clients = [flower.FlowerClient(node, 3) for node in range(3)]
        self.keys = [client.set_up() for client in self.clients]
        sent = {client.node: client.share_keys(self.strangers(client.node)) for client in self.clients}
        self.peers = {
            client.node: [
                flower.Peer(node, self.keys[node], sent[node][self.others(node).index(client.node)])
                for node in self.others(client.node)
            ]
            for client in self.clients
        }
        for client in self.clients:
            client.take_shares(self.peers[client.node])

    def others(self, node):
        return [other for other in range(3) if other != node]

    def strangers(self, node):
        return [flower.Peer(other, self.keys[other]) for other in self.others(node)]


def test_flowers_clients_masks_cancel_but_for_the_self_masks():
    case, stage = Case(3, 400, 1), FlowerPeers()
    total = None
    for client in stage.clients:
        vector = client.quantise(case.update(client.node), case.weight(client.node))
        vector = client.mask(vector, stage.peers[client.node])
        total = vector if total is None else parameters_addition(total, vector)
    for client in stage.clients:
        mask = pseudo_rand_gen(client.seed, flower.MOD_RANGE, [(), (400,)])
        total = [part - other for part, other in zip(total, mask, strict=True)]
    ratio, parameters = factor_extract(parameters_mod(total, flower.MOD_RANGE))
    (mean,) = dequantize(parameters, CLIP, flower.TARGET_RANGE)
    mean = (mean - 2 * CLIP) * flower.TARGET_RANGE / ratio
    assert np.abs(mean - case.mean).max() < 1e-6


def test_flowers_client_makes_the_vector_that_flowers_mod_makes():
    case, stage = Case(3, 400, 1), FlowerPeers()
    client = stage.clients[1]
    state = SecAggPlusState()
    state.nid, state.threshold, state.max_weight = 1, 3, float(COUNT_CAP)
    state.clipping_range, state.target_range, state.mod_range = CLIP, flower.TARGET_RANGE, flower.MOD_RANGE
    state.sk1, state.sk2, state.rd_seed = client.sk1, client.sk2, client.seed
    state.rd_seed_share_dict, state.sk1_share_dict = {}, {}
    state.ss2_dict = dict(client.secrets)
    state.public_keys_dict = dict(enumerate(stage.keys))
    peers = stage.peers[1]
    configs = ConfigRecord(
        {Key.CIPHERTEXT_LIST: [peer.ciphertext for peer in peers], Key.SOURCE_LIST: [peer.node for peer in peers]}
    )

    np.random.seed(5)  # what Flower rounds by
    update = ndarrays_to_parameters([case.update(1)])
    made = _collect_masked_vectors(state, configs, case.count(1), update)
    np.random.seed(5)
    ours = client.mask(client.quantise(case.update(1), case.weight(1)), peers)

    theirs = [bytes_to_ndarray(part) for part in made[Key.MASKED_PARAMETERS]]
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_what_is_extrapolated_says_so():
    assert not flower.FlowerArm(Case(4, 100, 1)).extrapolated_from
    assert flower.FlowerArm(Case(9, 100, 1)).extrapolated_from == {"recovered_seeds": 4}
