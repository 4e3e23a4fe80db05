"""The firm's side as the ClientApp of a stock Flower SuperNode, for consortia that already operate Flower.

    export DURE_AGENT_HOME=/var/lib/dure          # the home that `dure-agent join` made
    flower-supernode --superlink HOST:PORT …      # instead of `dure-agent run`, never beside it

The run's bundle (`python -m dure_server.superlink`) holds two import lines and nothing else; its client side is `app`
here, the installed code. Policy, approvals, trainers, ledger and result are those of the agent: `dure-agent review`,
`approve` and `ledger` work as usual. `--node-config 'dure-home="/var/lib/dure"'` names a home, too.

What is weaker than on Dure's own link, and cannot be mended from inside an app: a SuperNode runs whatever bundle the
operator sends (give it `--trusted-entities`), in a process of the user that owns the keys; a message is delivered at
most once; the trainer starts anew for each message; what Flower itself says about the node is not in the ledger.
"""

import hashlib
from contextlib import closing
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from dure_client.agent import answer_kind
from dure_client.flower import client_app
from dure_client.home import AgentHome, default_home
from dure_client.jobs.firm import Firm
from dure_client.jobs.side import Given, Reaction
from dure_client.ledger import Ledger
from dure_protocols.frames import DURE_MESSAGE_TYPE, Place, raw_bytes
from dure_protocols.ledger import Entry, RecordKind
from dure_protocols.messages import Present, encode

HOME_KEY = "dure-home"
"""The name of the home in a SuperNode's --node-config."""


def home_of(context: Context) -> AgentHome:
    """The agent's home: as the node config says, else $DURE_AGENT_HOME, else ~/.dure/agent."""
    named = context.node_config.get(HOME_KEY)
    return AgentHome(Path(str(named)) if named else default_home())


def answer_message(message: Message, context: Context) -> Message:
    """Answer one message in this process, from the home's files, and put into the ledger what leaves.

    A SuperNode's process ends after the message: so the trainer does, and a result is written before the answer. The
    open ledger keeps every other process off this home meanwhile. Nothing is raised, as in every `client_app`.
    """

    def answer(body: bytes, given: Given) -> Reaction:
        home = home_of(context)
        with Ledger(home.ledger_file, home.identity()) as ledger, closing(Firm(home)) as firm:
            reaction = firm.answer(body, given)
            firm.wait_for_results()
            for entry in outgoing(reaction, message.metadata.group_id, message.metadata.message_id):
                ledger.record(entry)
            return reaction

    return client_app(answer)(message, context)


def outgoing(reaction: Reaction, group: str, message_id: str) -> list[Entry]:
    """The ledger's entries for an answer. Raises MisuseError for one that may not leave the firm."""
    body = encode(reaction.message)
    is_name = isinstance(
        reaction.message, Present
    )  # asked for where nodes are not firms; it says that the firm is here
    kind = RecordKind.SUBSCRIPTION if is_name else answer_kind(body, set(reaction.arrays))
    job, number, attempt, _ = Place.of(group)
    entries = [Entry(kind, len(body), hashlib.sha256(body).digest(), job, number, attempt, message_id)]
    for array in reaction.arrays.values():
        digest = hashlib.sha256(raw_bytes(array)).digest()
        entries.append(Entry(RecordKind.BLOB, array.nbytes, digest, job, number, attempt, message_id))
    return entries


app = ClientApp()
app.query(DURE_MESSAGE_TYPE.removeprefix("query."))(answer_message)
