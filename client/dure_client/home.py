"""The agent's home: one folder with everything a firm's agent keeps, and nothing of it anywhere else.

    agent.toml            who we are, where the server is (written by `dure-agent join`)
    policy.toml data.toml what this firm consents to, where its data is (written by the firm)
    keys/                 tls.key tls.pem identity.key root.pem   (folder 0700, files 0600; no identity.key where
                          a PKCS#11 token holds it, see keystore.py)
    vouches/              what other firms signed about each other's keys; see vouches.py
    state/                released.bin, answers/, outbox/, inbox/, link.json (what the agent last heard of the server)
    jobs/<job-id>/        job, protocol state, models, result.json; see jobs/folder.py
    models/<digest>/      model packages, fetched and approved; see packages/shelf.py
    ledger/ledger.jsonl   every byte that left
    logs/                 what may never leave

Each setting of agent.toml may also be given by the environment, as DURE_AGENT_ and its name in capitals, which then
goes before the file: see docs/installation.md. What a firm consents to stands in policy.toml alone.

Errors: HomeError and its SettingsError, with the command that helps.
"""

import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ConfigDict, Field, ValidationError, field_validator

from dure_client.keystore import KeyStore, KeyStoreSettings, RandomBytes, TokenKeyStore
from dure_client.link.channel import Route
from dure_client.link.proxy import proxy_for, read_proxy_url
from dure_protocols.certificates import CertificateFacts, key_from_pem, read_certificate
from dure_protocols.errors import DureError
from dure_protocols.identity import Identity, check_firm_name
from dure_protocols.toml import field_problems, parse_toml

HOME_VARIABLE = "DURE_AGENT_HOME"
SETTING_PREFIX = "DURE_AGENT_"


class HomeError(DureError):
    """The agent's home is missing something, holds something damaged, or may be read by others."""


class SettingsError(HomeError):
    """agent.toml is damaged, or a variable is not what it must be: a person has to mend it."""


def default_home() -> Path:
    """Where the agent lives unless told otherwise: $DURE_AGENT_HOME, or ~/.dure/agent."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".dure" / "agent")


class AgentConfig(KeyStoreSettings):
    """agent.toml: what the firm learned when it joined, and a port that it may add. Holds no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: str = Field(min_length=1, max_length=64)
    firm: str
    server_host: str = Field(min_length=1, max_length=253)
    enrolment_port: int = Field(ge=1, le=65535)
    link_port: int = Field(ge=1, le=65535)
    root_fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the consortium root's DER, as the firm's administrator confirmed it."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `/metrics` on loopback; None: nothing listens. The firm sets it by hand."""
    server_name: str | None = Field(default=None, min_length=1, max_length=253)
    """Name that the server's certificate must have. None: `server_host`. Stays when the server moves."""
    proxy: str | None = None
    """The firm's own HTTP proxy, http://HOST:PORT. None: what the environment names, if anything; see link/proxy.py."""
    proxy_credentials_file: Path | None = None
    """File of mode 0600 with the proxy's "user:password"."""

    @field_validator("proxy")
    @classmethod
    def _proxy_is_without_credentials(cls, value: str | None) -> str | None:
        if value is not None and any(read_proxy_url(value)[1]):
            raise ValueError("user name and password go into proxy_credentials_file, not into the URL")
        return value

    @field_validator("firm")
    @classmethod
    def _firm_is_a_name(cls, value: str) -> str:
        return check_firm_name(value)

    @property
    def link_address(self) -> str:
        """host:port of the link, as gRPC takes it."""
        return f"{_bracketed(self.server_host)}:{self.link_port}"

    @property
    def enrolment_url(self) -> str:
        """Base of the enrolment API, without a slash at the end."""
        return f"https://{_bracketed(self.server_host)}:{self.enrolment_port}"

    def route(self, environment: Mapping[str, str]) -> Route:
        """How the link is reached from here. Raises ProxyError."""
        proxy = proxy_for(self.server_host, self, environment)
        return Route(self.link_address, self.server_name or self.server_host, proxy)

    def to_toml(self) -> str:
        """The file's text."""
        lines = ["# Written by `dure-agent`. Holds no secret.", ""]
        for name, value in self.model_dump(exclude_none=True).items():
            lines.append(f"{name} = {value if isinstance(value, int) else _toml_string(str(value))}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class AgentHome:
    """Paths inside an agent's home, and the few files whose form everyone must agree on."""

    path: Path

    @property
    def config_file(self) -> Path:
        """agent.toml."""
        return self.path / "agent.toml"

    @property
    def policy_file(self) -> Path:
        """policy.toml: what this firm consents to."""
        return self.path / "policy.toml"

    @property
    def data_file(self) -> Path:
        """data.toml: where this firm's data is and how its columns map to the contract's."""
        return self.path / "data.toml"

    @property
    def keys(self) -> Path:
        """Folder of keys, mode 0700."""
        return self.path / "keys"

    @property
    def tls_key_file(self) -> Path:
        """Private key of the link's client certificate, mode 0600."""
        return self.keys / "tls.key"

    @property
    def tls_certificate_file(self) -> Path:
        """The client certificate that the consortium issued."""
        return self.keys / "tls.pem"

    @property
    def next_tls_key_file(self) -> Path:
        """The key of a renewal under way, mode 0600."""
        return self.keys / "tls-next.key"

    @property
    def next_tls_certificate_file(self) -> Path:
        """The certificate of a renewal under way; once it is here, the renewal only has to be finished."""
        return self.keys / "tls-next.pem"

    @property
    def identity_key_file(self) -> Path:
        """Private Ed25519 key of the firm's identity, mode 0600."""
        return self.keys / "identity.key"

    @property
    def root_file(self) -> Path:
        """The consortium's root certificate: the only one this agent trusts."""
        return self.keys / "root.pem"

    @property
    def state(self) -> Path:
        """Protocol state, answers, boxes of the link."""
        return self.path / "state"

    @property
    def standing_file(self) -> Path:
        """What the agent last heard of the server; see link/standing.py."""
        return self.state / "link.json"

    @property
    def vouches(self) -> Path:
        """Folder of vouches that were taken in, one file each."""
        return self.path / "vouches"

    @property
    def jobs(self) -> Path:
        """One folder a job."""
        return self.path / "jobs"

    @property
    def models(self) -> Path:
        """One folder a model package, by its digest."""
        return self.path / "models"

    @property
    def ledger_file(self) -> Path:
        """The append-only account of what left."""
        return self.path / "ledger" / "ledger.jsonl"

    @property
    def logs(self) -> Path:
        """The firm's own logs. They never leave."""
        return self.path / "logs"

    def job_folder(self, job: str) -> Path:
        """Folder of one job. `job` MUST have been validated as a job id (it becomes a file name)."""
        return self.jobs / job

    def create(self) -> None:
        """Make the folders, private to this user. Calling it again changes nothing that is there."""
        for folder in (self.path, self.keys, self.state, self.jobs, self.models, self.ledger_file.parent, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.keys.chmod(0o700)

    @property
    def has_joined(self) -> bool:
        """Whether `dure-agent join` has gone through here."""
        return self.config_file.exists() and self.tls_certificate_file.exists()

    def config(self, environment: Mapping[str, str] = os.environ) -> AgentConfig:
        """What is in force: agent.toml, and over it what the environment sets.

        Raises HomeError if the firm has not joined, SettingsError.
        """
        written = self.written_config()
        given = settings_in(environment)
        try:
            return AgentConfig.model_validate(written.model_dump() | given) if given else written
        except ValidationError as error:
            raise SettingsError(f"a variable {SETTING_PREFIX}… is wrong: {_first_line(error)}") from error

    def written_config(self) -> AgentConfig:
        """agent.toml alone, for whoever changes it. Raises HomeError if the firm has not joined, SettingsError."""
        try:
            return AgentConfig.model_validate(parse_toml(self.config_file.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise HomeError(
                f"{self.path} belongs to no firm yet: run `dure-agent join` with the operator's invitation, "
                "or name another folder with --home"
            ) from error
        except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError, DureError) as error:
            raise SettingsError(
                f"{self.config_file} is damaged ({_first_line(error)}); correct it, or restore it from a backup"
            ) from error

    def write_config(self, config: AgentConfig) -> None:
        """Write agent.toml, whole or not at all."""
        write_file(self.config_file, config.to_toml().encode(), mode=0o600)

    def key_settings(self, environment: Mapping[str, str] = os.environ) -> KeyStoreSettings:
        """Where this home's identity key lives. Before the firm has joined, the environment alone says it.

        Raises SettingsError.
        """
        if self.config_file.exists():
            return self.config(environment)
        given = {name: value for name, value in settings_in(environment).items() if name.startswith("pkcs11_")}
        try:
            return KeyStoreSettings.model_validate(given)
        except ValidationError as error:
            raise SettingsError(f"the environment ({SETTING_PREFIX}PKCS11_…) is wrong: {_first_line(error)}") from error

    def key_store(self, environment: Mapping[str, str] = os.environ) -> KeyStore:
        """What holds the identity key: a file of this home or a token. Raises HomeError."""
        settings = self.key_settings(environment)
        if settings.pkcs11_module is not None:
            return TokenKeyStore(settings, read_private)
        return FileKeyStore(self.identity_key_file)

    def identity(self) -> Identity:
        """The firm's identity key. Raises HomeError if it is missing or readable by others, KeyStoreError."""
        return self.key_store().identity()

    def tls_key(self) -> ec.EllipticCurvePrivateKey:
        """The link's key. Raises HomeError if it is missing or readable by others."""
        return key_from_pem(read_private(self.tls_key_file))

    def certificate(self) -> CertificateFacts:
        """What the client certificate says. Raises HomeError if there is none."""
        try:
            return read_certificate(self.tls_certificate_file.read_bytes())
        except FileNotFoundError as error:
            raise HomeError(f"{self.tls_certificate_file} is missing: run `dure-agent join` again") from error

    def job_names(self) -> list[str]:
        """Jobs this agent has a folder for, by name."""
        return sorted(entry.name for entry in self.jobs.iterdir() if entry.is_dir()) if self.jobs.is_dir() else []


@dataclass(frozen=True)
class FileKeyStore:
    """The identity key in a file of mode 0600."""

    path: Path

    def identity(self) -> Identity:
        """The file's key. Raises HomeError if it is missing or readable by others."""
        return Identity.from_pem(read_private(self.path))

    def identity_or_new(self, random_bytes: RandomBytes) -> Identity:
        """The file's key, or a new one of 32 random bytes, which is on disk when this returns."""
        return Identity.from_pem(keep_or_make_private(self.path, Identity.from_seed(random_bytes(32)).to_pem()))

    def has_key(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def erase(self) -> None:
        """Delete the file. Raises OSError."""
        self.path.unlink(missing_ok=True)


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of agent.toml that the environment gives, by their names there. An empty variable is none."""
    named = {name: environment.get(SETTING_PREFIX + name.upper(), "") for name in AgentConfig.model_fields}
    return {name: value for name, value in named.items() if value}


def read_private(path: Path) -> bytes:
    """Read a file that holds a private key. Raises HomeError if it is missing or others may read it."""
    try:
        mode = path.stat().st_mode & 0o077
        content = path.read_bytes()
    except OSError as error:
        raise HomeError(f"the key file {path} cannot be read: {error.strerror}") from error
    if mode:
        raise HomeError(f"the key file {path} may be read by other users of this machine: run `chmod 600 {path}`")
    return content


def keep_or_make_private(path: Path, content: bytes) -> bytes:
    """Write a new private file, or return what is there already: a key is never overwritten.

    The file appears with its whole content or not at all (written aside, flushed, then linked into place), so a crash
    leaves no half key and two runs at once agree on one.
    """
    if path.exists():
        return read_private(path)
    aside = _write_aside(path, content, 0o600)
    try:
        os.link(aside, path)
    except FileExistsError:
        return read_private(path)
    finally:
        aside.unlink()
    flush_folder(path.parent)
    return content


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file whole or not at all, and flush it to disk."""
    aside = _write_aside(path, content, mode)
    aside.replace(path)
    flush_folder(path.parent)


def _write_aside(path: Path, content: bytes, mode: int) -> Path:
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return Path(aside)


def flush_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _toml_string(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return next(field_problems(error, AgentConfig))
    return str(error).splitlines()[0]
