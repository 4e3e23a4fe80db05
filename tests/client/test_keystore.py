"""The identity key on a PKCS#11 token: made there, used there, never seen outside; and the file that it is else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dure_client.home import AgentConfig, AgentHome, FileKeyStore, HomeError
from dure_client.keystore import KeyStoreError, KeyStoreSettings, TokenKeyStore
from dure_client.ledger import Ledger, verify_file
from dure_protocols.errors import IdentityError
from dure_protocols.identity import verify
from dure_protocols.ledger import Entry, RecordKind
from tests.conftest import lacking

PIN = "84023-pin"
MODULES = (
    *("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"),
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SoftHSM2's library, with a token "dure" of the tests' own. A process reads SoftHSM's settings once."""
    module = next((Path(path) for path in MODULES if Path(path).exists()), None)
    if module is None or shutil.which("softhsm2-util") is None:
        lacking("needs SoftHSM2: apt-get install softhsm2")
        raise AssertionError
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    made = ["softhsm2-util", "--init-token", "--free", "--label", "dure", "--so-pin", "1234567", "--pin", PIN]
    subprocess.run(made, check=True, capture_output=True)
    return module


@pytest.fixture
def pin_file(tmp_path: Path) -> Path:
    file = tmp_path / "pin"
    file.touch(mode=0o600)
    file.write_text(PIN + "\n")
    return file


@pytest.fixture
def environment(softhsm: Path, pin_file: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        "DURE_AGENT_PKCS11_MODULE": str(softhsm),
        "DURE_AGENT_PKCS11_TOKEN": "dure",
        "DURE_AGENT_PKCS11_KEY": request.node.name[:60],
        "DURE_AGENT_PKCS11_PIN_FILE": str(pin_file),
    }


def config_of(settings: KeyStoreSettings) -> AgentConfig:
    return AgentConfig(
        consortium="c", firm="kim", server_host="localhost", enrolment_port=1, link_port=2, root_fingerprint="0" * 64,
        **settings.model_dump(),
    )  # fmt: skip


def no_randomness(_: int) -> bytes:
    raise AssertionError("a token makes its key of its own randomness")


def test_a_token_makes_the_identity_once_and_signs_as_a_file_would(tmp_path: Path, environment: dict[str, str]) -> None:
    home = AgentHome(tmp_path / "home")
    home.create()
    store = home.key_store(environment)
    with pytest.raises(KeyStoreError, match="dure-agent join"):
        store.identity()
    made = store.identity_or_new(no_randomness)
    signature = made.sign("label", b"part")
    verify(made.public_bytes, signature, "label", b"part")
    again = home.key_store(environment).identity_or_new(no_randomness)
    assert again.public_bytes == made.public_bytes
    assert again.sign("label", b"part") == signature  # the training seed follows from a signature
    assert not home.identity_key_file.exists()


def test_a_tokens_key_cannot_be_read_out(tmp_path: Path, environment: dict[str, str]) -> None:
    import pkcs11

    identity = AgentHome(tmp_path).key_store(environment).identity_or_new(no_randomness)
    with pytest.raises(IdentityError, match="cannot be read out"):
        identity.to_pem()
    private = identity._key._private  # type: ignore[attr-defined]
    assert (private[pkcs11.Attribute.SENSITIVE], private[pkcs11.Attribute.EXTRACTABLE]) == (True, False)
    with pytest.raises(pkcs11.PKCS11Error):
        private[pkcs11.Attribute.VALUE]


def test_a_key_that_is_erased_is_no_longer_on_the_token(tmp_path: Path, environment: dict[str, str]) -> None:
    store = AgentHome(tmp_path).key_store(environment)
    assert not store.has_key()
    before = store.identity_or_new(no_randomness).public_bytes
    assert store.has_key()
    for _ in range(2):
        store.erase()
        assert not store.has_key()
    with pytest.raises(KeyStoreError, match="holds no"):
        store.identity()
    assert store.identity_or_new(no_randomness).public_bytes != before


def test_a_ledger_signed_by_a_token_verifies(tmp_path: Path, environment: dict[str, str]) -> None:
    identity = AgentHome(tmp_path).key_store(environment).identity_or_new(no_randomness)
    file = tmp_path / "ledger" / "ledger.jsonl"
    file.parent.mkdir()
    with Ledger(file, identity) as ledger:
        ledger.record(Entry(kind=RecordKind.APPROVAL, size_bytes=3, sha256=bytes(32)))
    assert verify_file(file, identity.public_bytes).head.number == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"DURE_AGENT_PKCS11_TOKEN": "other"}, "KeyStoreError: /.* knows no token"),
        ({"DURE_AGENT_PKCS11_MODULE": "/no/such/library.so"}, "KeyStoreError: .* check pkcs11_module"),
        ({"DURE_AGENT_PKCS11_PIN_FILE": "wrong"}, "PinError: .* refuses the PIN"),
    ],
)
def test_a_token_that_cannot_be_used_says_why_and_never_its_pin(
    tmp_path: Path, environment: dict[str, str], changes: dict[str, str], says: str
) -> None:
    """In a process of its own: a process logs in to a token once, and its PIN is then not asked for again."""
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text(PIN + "-wrong")
    changes = {name: str(wrong) if value == "wrong" else value for name, value in changes.items()}
    program = "from pathlib import Path\nfrom dure_client.home import AgentHome\nAgentHome(Path('.')).identity()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, **environment, **changes},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(says, done.stderr)
    assert PIN not in done.stderr


def test_an_agent_that_runs_with_a_wrong_pin_ends_with_the_status_that_starts_nothing_again(
    tmp_path: Path, environment: dict[str, str], pin_file: Path
) -> None:
    """A service manager that tried it every half a minute would lock the token."""
    home = AgentHome(tmp_path / "home")
    home.create()
    home.write_config(config_of(home.key_settings(environment)))
    pin_file.write_text(PIN + "-wrong")
    command = [sys.executable, "-m", "dure_client.cli", "run", "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "refuses the PIN" in done.stderr
    assert PIN not in done.stderr
    assert done.returncode == 78


def test_a_pin_that_others_may_read_is_not_used(tmp_path: Path, pin_file: Path) -> None:
    pin_file.chmod(0o644)
    settings = KeyStoreSettings(pkcs11_module=Path("/m.so"), pkcs11_token="dure", pkcs11_pin_file=pin_file)
    home = AgentHome(tmp_path / "home")
    home.create()
    home.write_config(config_of(settings))
    assert isinstance(home.key_store({}), TokenKeyStore)
    with pytest.raises(HomeError, match="chmod 600"):
        home.identity()


def test_half_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="belong together"):
        AgentHome(tmp_path).key_store({"DURE_AGENT_PKCS11_TOKEN": "dure"})


def test_without_settings_the_identity_is_a_file_that_is_made_once(tmp_path: Path) -> None:
    home = AgentHome(tmp_path)
    home.create()
    store = home.key_store({})
    assert store == FileKeyStore(home.identity_key_file)
    first = store.identity_or_new(lambda count: b"\1" * count)
    assert store.identity_or_new(lambda count: b"\2" * count).public_bytes == first.public_bytes
    assert home.identity_key_file.stat().st_mode & 0o777 == 0o600
