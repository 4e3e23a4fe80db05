"""No decoder goes without a target: they are looked for in the source, and seen to run."""

import ast
from functools import cache

from tests.fuzz.decoders import Reached, decoders_in, found_classes, found_functions, inside_models, watching
from tests.fuzz.judge import measuring
from tests.fuzz.targets import all_targets

WITHOUT_A_TARGET = {
    "dure_protocols.secagg.run:run_secure_aggregation": "plays all parties; no bytes come from outside",
    "dure_protocols.secagg.server:Attempt.unmask": "takes decoded messages; what it opens is the target `escrow`",
    "dure_server.coordinator.course:_run": "the first model that this server wrote; GlobalState checks its digest",
    "dure_server.coordinator.record:JobRecord.operation": "what `changed_operation` let into the store",
    "dure_client.trainer.sandbox.python_files:python_files": "what this very Python says of itself",
    "dure_client.commands.server:_write": "what the firm's own user says on the command line",
    "dure_client.home:AgentHome.key_settings": "what the firm's own environment says",
    "dure_client.keystore:_TokenKey.__init__": "the public key that the firm's own token shows",
}
CLASSES_WITHOUT_A_TARGET = {"dure_protocols.secagg.handshake:EpochKeys": "made and never read"}


@cache
def reached() -> Reached:
    with measuring(), watching() as seen:
        for target in all_targets():
            for seed in target.seeds:
                try:
                    target.check(target.decode(seed))
                except target.refusals:
                    continue
    return seen


def test_every_function_that_decodes_is_reached_by_a_target() -> None:
    missed = {name: why for name, why in found_functions().items() if name not in reached().functions}
    assert missed.keys() == WITHOUT_A_TARGET.keys(), missed


def test_every_class_of_the_protocol_that_reads_itself_is_reached_by_a_target() -> None:
    read = reached().classes | inside_models(reached().classes)
    missed = {name for name, cls in found_classes().items() if cls not in read}
    assert missed == CLASSES_WITHOUT_A_TARGET.keys()


def test_the_search_finds_what_there_is() -> None:
    functions, classes = found_functions(), found_classes()
    assert {
        "dure_protocols.messages:decode",
        "dure_protocols.secagg.codec:decode_sum",
        "dure_client.policy:Policy.parse",
        "dure_server.link.desk_frames:decode_push",
    } <= functions.keys()
    assert {"dure_protocols.messages:Vote", "dure_protocols.enrolment:JoinRequest"} <= classes.keys()


def test_a_new_decoder_is_found_by_what_it_calls_or_says() -> None:
    source = '''
class Box:
    def open(self, data):
        return Reader(data).u8()
    async def ask(self, data):
        return json.loads(data)
    def close(self, data):
        return data.loads()
def told(words):
    """Take words. Raises MessageError."""
def made(form, value):
    return struct.unpack(form, value)
'''
    found = dict(decoders_in(ast.parse(source)))
    assert found == {
        "Box.open": "calls Reader",
        "Box.ask": "calls json.loads",
        "told": "says that it raises MessageError",
        "made": "calls struct.unpack",
    }
