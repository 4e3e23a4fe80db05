"""Homes of firms that no server has enrolled, and what firms agree on by phone. For simulations and tests."""

import re
from collections.abc import Mapping
from pathlib import Path

from dure_client.home import AgentConfig, AgentHome, keep_or_make_private, write_file
from dure_client.policy import allow_model, pin_firm, read_text
from dure_models.digest import model_digest
from dure_protocols.identity import Identity

NOWHERE = AgentConfig(
    consortium="nowhere", firm="none", server_host="localhost", enrolment_port=1, link_port=1, root_fingerprint="0" * 64
)

OWN_TERMS: Mapping[str, object] = {
    "purpose": "benchmark",
    "agreement": {"name": "with nobody", "version": "1", "sha256": "0" * 64},
}
"""Of a draft whose jobs run among processes of one's own: what firms with the policy of `by_itself` accept unasked."""


def by_itself(policy: str) -> str:
    """A policy's text, of those that say "ask", that takes part by itself in jobs of OWN_TERMS. For simulations."""
    changed = f'{policy.rstrip()}\n\n[[agreements]]\nname = "with nobody"\nversion = "1"\nsha256 = "{"0" * 64}"\n'
    for before, after in (
        ('approve_jobs = "ask"', 'approve_jobs = "allowed-models"'),
        ("purposes = []", 'purposes = ["benchmark"]'),
    ):
        changed = changed.replace(before, after)
    return re.sub("^ask_person = .*$", "ask_person = []", changed, flags=re.MULTILINE)


def make_home(folder: Path, consortium: str, firm: str, seed: bytes) -> AgentHome:
    """A firm's home with an identity key made of `seed` (32 bytes) and no certificate: it can reach no link."""
    home = AgentHome(folder)
    home.create()
    keep_or_make_private(home.identity_key_file, Identity.from_seed(seed).to_pem())
    home.write_config(NOWHERE.model_copy(update={"consortium": consortium, "firm": firm}))
    return home


def introduce(homes: Mapping[str, AgentHome], model: str) -> None:
    """Each firm pins every other firm's fingerprint and puts the installed model on its allow-list."""
    fingerprints = {name: home.identity().fingerprint for name, home in homes.items()}
    for name, home in homes.items():
        text = allow_model(read_text(home.policy_file), model, model_digest(model))
        for other, value in fingerprints.items():
            text = text if other == name else pin_firm(text, other, value)
        # A machine without bubblewrap runs demos and tests as well; one with it uses it all the same.
        text = text.replace('require_sandbox = "full"', 'require_sandbox = "off"')
        write_file(home.policy_file, text.encode())
