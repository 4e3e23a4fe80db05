"""Making a server's home, and keeping its certificate young."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime

from dure_protocols.certificates import (
    Authority,
    key_from_pem,
    key_to_pem,
    new_serial,
    new_tls_key,
    read_certificate,
    server_names,
)
from dure_server.files import write_private
from dure_server.settings import ServerHome, ServerSettings, SettingsError
from dure_server.store import Store


def make_home(home: ServerHome, settings: ServerSettings, actor: str, now: datetime) -> Authority:
    """Make a consortium: root, server certificate, store, server.toml (last, so a home that has one is complete).

    Raises SettingsError if anything is in the folder already: a root is never overwritten. Raises StoreError if the
    store cannot be used or belongs to a consortium.
    """
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        what = "is a server's home already" if home.settings_file.exists() else "is not empty"
        raise SettingsError(f"{home.path} {what}, and nothing is ever overwritten: name an empty folder with --home")
    authority = Authority.create(settings.consortium, now, key=new_tls_key(), serial=new_serial())
    home.create()
    store = Store.create(home.store_url(settings))
    try:
        with store.transaction() as tx:
            tx.consortium.create(settings.consortium, authority.fingerprint)
            tx.audit.append(actor, "consortium.create", settings.consortium, {"root": authority.fingerprint})
    finally:
        store.close()
    write_private(home.root_key_file, authority.key_pem())
    write_private(home.root_file, authority.certificate_pem)
    issue_server_certificate(home, settings, authority, now)
    write_private(home.settings_file, settings.to_toml().encode())
    return authority


def issue_server_certificate(
    home: ServerHome, settings: ServerSettings, authority: Authority, now: datetime, old_names: Sequence[str] = ()
) -> None:
    """A certificate for the server's key (made here the first time) on every name that it is reached by.

    `old_names`: names it had before. They stay, since a firm knows the server by the name in its invitation for good.
    """
    if not home.server_key_file.exists():
        write_private(home.server_key_file, key_to_pem(new_tls_key()))
    key = key_from_pem(home.server_key_file.read_bytes())
    hosts = list(dict.fromkeys([settings.public_host, *old_names, "localhost", "127.0.0.1", "::1"]))
    write_private(
        home.server_certificate_file, authority.issue_server(key.public_key(), hosts, now, serial=new_serial())
    )


def renew_server_certificate_if_due(home: ServerHome, settings: ServerSettings, now: datetime) -> bool:
    """Called at the start of `dure-server run`, before any process reads the certificate. Whether it was renewed.

    It is due when most of its life is over, and when `public_host` has changed to a name that it does not have.
    """
    try:
        pem = home.server_certificate_file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{home.server_certificate_file} cannot be read: {error.strerror}") from error
    names = server_names(pem)
    if _as_named(settings.public_host) in names and not read_certificate(pem).renewal_is_due(now):
        return False
    issue_server_certificate(home, settings, home.authority(), now, names)
    return True


def _as_named(host: str) -> str:
    """A host as a certificate spells it: addresses have one form."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host
