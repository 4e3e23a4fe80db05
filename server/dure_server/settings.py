"""The server's home folder and server.toml.

    server.toml       consortium, public host, ports, store        (0600: a store URL may hold a password)
    pki/              root.key root.pem server.key server.pem      (folder 0700, keys 0600)
    store.sqlite      unless server.toml names a PostgreSQL database
    uploads/<firm>/<sha256>   released/<sha256>                    blobs of the link
    desk.sock         where coordinators reach the link
    jobs/<job-id>/    job.json, model checkpoints
    logs/  flwr/      one log a process; flwr's own folder
    processes.json    which processes run, while they do

Errors: SettingsError, with what to change.
"""

import ipaddress
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from dure_protocols.certificates import Authority
from dure_protocols.errors import DureError
from dure_protocols.identity import is_plain
from dure_protocols.toml import parse_toml

HOME_VARIABLE = "DURE_SERVER_HOME"
STORE_VARIABLE = "DURE_STORE_URL"
DEFAULT_LINK_PORT = 7443
DEFAULT_ENROLMENT_PORT = 7444
DEFAULT_CONSOLE_PORT = 7480
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9-]{1,63})*")


class SettingsError(DureError):
    """server.toml or the server's home is not what it must be."""


def default_home() -> Path:
    """Where the server lives unless told otherwise: $DURE_SERVER_HOME, or ~/.dure/server."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".dure" / "server")


class ServerSettings(BaseModel):
    """server.toml. Built once at start; checks itself, so the code behind it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    consortium: str = Field(min_length=1, max_length=64)
    public_host: str
    """Host name or address by which firms reach this server; stands in its certificate and in invitations."""
    bind_host: str = "0.0.0.0"  # noqa: S104  # firms come from outside; the console does not use this
    """Address that link and enrolment listen on."""
    link_port: int = Field(default=DEFAULT_LINK_PORT, ge=1, le=65535)
    enrolment_port: int = Field(default=DEFAULT_ENROLMENT_PORT, ge=1, le=65535)
    console_port: int = Field(default=DEFAULT_CONSOLE_PORT, ge=1, le=65535)
    store_url: SecretStr | None = None
    """SQLAlchemy URL of a PostgreSQL database (postgresql+psycopg://…). None: store.sqlite in the home."""

    @field_validator("consortium")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not is_plain(value):
            raise ValueError("must be a name without control characters: every invitation shows it")
        return value

    @field_validator("public_host")
    @classmethod
    def _host_is_reachable(cls, value: str) -> str:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            if not _HOST_NAME.fullmatch(value):
                raise ValueError("must be a host name or an IP address, without a scheme or a port") from None
        return value

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServerSettings":
        if len({self.link_port, self.enrolment_port, self.console_port}) != 3:
            raise ValueError("link_port, enrolment_port and console_port must be three different ports")
        return self

    @property
    def enrolment_url(self) -> str:
        """What an invitation names."""
        host = f"[{self.public_host}]" if ":" in self.public_host else self.public_host
        return f"https://{host}:{self.enrolment_port}"

    @property
    def console_url(self) -> str:
        """Where the operator's browser goes, on this machine."""
        return f"http://127.0.0.1:{self.console_port}"

    def to_toml(self) -> str:
        """The file's text, the store's URL in the clear: the file is of mode 0600."""
        lines = ["# Dure server. Changes take effect when `dure-server run` is started again.", ""]
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            if value is not None:
                # JSON's strings are TOML's basic strings once non-ASCII characters stand for themselves.
                lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"

    @classmethod
    def checked(cls, values: dict[str, object]) -> "ServerSettings":
        """Build from untrusted values. Raises SettingsError naming the first setting that is wrong, not its value."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"])) or "server.toml"
            raise SettingsError(f"{where}: {first['msg']}") from error


@dataclass(frozen=True)
class ServerHome:
    """Paths inside a server's home, and how its settings are read."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """server.toml."""
        return self.path / "server.toml"

    @property
    def pki(self) -> Path:
        """Folder of keys and certificates, mode 0700."""
        return self.path / "pki"

    @property
    def root_key_file(self) -> Path:
        """The consortium root's private key, mode 0600."""
        return self.pki / "root.key"

    @property
    def root_file(self) -> Path:
        """The consortium root's certificate."""
        return self.pki / "root.pem"

    @property
    def server_key_file(self) -> Path:
        """Private key of link and enrolment, mode 0600."""
        return self.pki / "server.key"

    @property
    def server_certificate_file(self) -> Path:
        """Certificate of link and enrolment."""
        return self.pki / "server.pem"

    @property
    def sqlite_file(self) -> Path:
        """The default store."""
        return self.path / "store.sqlite"

    @property
    def uploads(self) -> Path:
        """Blobs that firms uploaded: uploads/<firm>/<sha256>."""
        return self.path / "uploads"

    @property
    def released(self) -> Path:
        """Blobs that firms may download: released/<sha256>."""
        return self.path / "released"

    @property
    def desk_socket(self) -> Path:
        """Unix socket on which coordinators reach the link."""
        return self.path / "desk.sock"

    @property
    def jobs(self) -> Path:
        """One folder a job."""
        return self.path / "jobs"

    @property
    def models(self) -> Path:
        """Published model packages, each by its digest."""
        return self.path / "models"

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.path / "logs"

    @property
    def flwr(self) -> Path:
        """flwr's own folder (FLWR_HOME)."""
        return self.path / "flwr"

    @property
    def processes_file(self) -> Path:
        """Which processes `dure-server run` keeps alive, for `/metrics`."""
        return self.path / "processes.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one `dure-server run` of this home."""
        return self.path / "run.lock"

    def job_folder(self, job: str) -> Path:
        """Folder of one job. `job` MUST have been validated as a job id (it becomes a file name)."""
        return self.jobs / job

    def create(self) -> None:
        """Make the folders, private to this user."""
        folders = (self.path, self.pki, self.uploads, self.released, self.jobs, self.models, self.logs, self.flwr)
        for folder in folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def settings(self) -> ServerSettings:
        """Read server.toml; $DURE_STORE_URL overrides its store. Raises SettingsError."""
        try:
            values = parse_toml(self.settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SettingsError(
                f"{self.path} is no server's home: run `dure-server init --home {self.path}` first, "
                "or name another folder with --home"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{self.settings_file} is not valid TOML: {error}") from error
        if os.environ.get(STORE_VARIABLE):
            values["store_url"] = os.environ[STORE_VARIABLE]
        try:
            return ServerSettings.checked(values)
        except SettingsError as error:
            raise SettingsError(f"{self.settings_file}: {error}") from error

    def store_url(self, settings: ServerSettings) -> str:
        """The SQLAlchemy URL of the store. May hold a password: never print it."""
        if settings.store_url is not None:
            return settings.store_url.get_secret_value()
        return f"sqlite:///{self.sqlite_file}"

    def authority(self) -> Authority:
        """The consortium's root with its key, for the processes that issue certificates."""
        try:
            return Authority(self.root_file.read_bytes(), self.root_key_file.read_bytes())
        except OSError as error:
            raise SettingsError(f"the consortium's root cannot be read from {self.pki}: {error.strerror}") from error
