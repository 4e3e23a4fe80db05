"""Blobs over a real link process: resumed, checked, limited, and each firm's own."""

import hashlib
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

import dure_client.link.transfer
from dure_client.agent import spool
from dure_client.link.client import LinkClient, LinkRefusedError
from dure_protocols.frames import CHUNK_BYTES, Announce, AnyArray, ArrayRef, Envelope, Fetch, Stored
from dure_protocols.ledger import RecordKind
from dure_server.link.blobs import map_array
from tests.end_to_end.link_site import Account, LinkSite, blob, eventually, in_background

SIZE_BYTES = 40 << 20


class Outgoing:
    """A blob in a firm's outbox, and the reply that names it."""

    def __init__(self, site: LinkSite, firm: str, tmp_path: Path, size_bytes: int = SIZE_BYTES) -> None:
        self.array: AnyArray = blob(size_bytes)
        self.message = site.message(firm, "steel/3/1/cohort")
        site.push(firm, self.message)
        self.path = tmp_path / spool(self.array, tmp_path)
        self.ref = ArrayRef.of("masked", self.array, self.path.name)
        self.reply = self.message.reply(b"x", (self.ref,), created_at=time.time())
        self.target = site.home.uploads / firm / self.ref.sha256
        self.part = self.target.with_suffix(".part")

    def upload(self, client: LinkClient) -> None:
        client.upload(self.path, self.ref, self.reply, patience_seconds=60)


@pytest.fixture
def slow_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 KiB, so that an upload lasts long enough to be cut."""
    monkeypatch.setattr(dure_client.link.transfer, "CHUNK_BYTES", 64 << 10)


def raw_upload(site: LinkSite, firm: str, requests: list[bytes]) -> list[Stored]:
    with site.raw_channel(firm) as channel:
        call = channel.stream_stream("/dure.link.Firm/Upload")(iter(requests), timeout=20, wait_for_ready=True)
        return [Stored.decode(data) for data in call]


def test_an_uploaded_blob_is_whole_on_the_servers_disk_and_is_mapped_not_copied(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    outgoing, client = Outgoing(site, firm, tmp_path), site.client(firm)
    outgoing.upload(client)
    client.reply(outgoing.reply, RecordKind.MASKED_UPDATE, patience_seconds=10)
    (reply,) = site.replies(outgoing.message)
    mapped = map_array(outgoing.target, reply.arrays[0].dtype, reply.arrays[0].shape)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, outgoing.array)
    assert not outgoing.part.exists()


def test_an_upload_goes_on_where_it_was_when_the_link_was_killed(
    site: LinkSite, firm: str, tmp_path: Path, slow_file: None
) -> None:
    account = Account()
    outgoing, client = Outgoing(site, firm, tmp_path), site.client(firm, account=account)
    uploading = in_background(lambda: outgoing.upload(client))
    eventually(lambda: outgoing.part.exists() and outgoing.part.stat().st_size > 4 << 20)
    site.kill()
    kept = outgoing.part.stat().st_size
    assert kept < SIZE_BYTES
    site.start()
    uploading.join(30)
    assert outgoing.target.stat().st_size == SIZE_BYTES
    parts = [entry for entry in account.entries if entry.kind is RecordKind.BLOB]
    assert [entry.offset_bytes for entry in parts] == [0, kept]
    client.reply(outgoing.reply, RecordKind.MASKED_UPDATE, patience_seconds=10)
    assert site.replies(outgoing.message) == [outgoing.reply]


def test_the_account_of_a_cut_upload_takes_back_what_did_not_leave(
    site: LinkSite, firm: str, tmp_path: Path, slow_file: None
) -> None:
    account = Account()
    outgoing, client = Outgoing(site, firm, tmp_path), site.client(firm, account=account)
    uploading = in_background(lambda: outgoing.upload(client))
    eventually(lambda: outgoing.part.exists() and outgoing.part.stat().st_size > 4 << 20)
    site.kill()
    kept = outgoing.part.stat().st_size
    site.start()
    uploading.join(30)
    announced = sum(entry.size_bytes for entry in account.entries if entry.kind is RecordKind.BLOB_CONTROL)
    sent = account.num_bytes - announced
    assert kept + (SIZE_BYTES - kept) <= sent <= SIZE_BYTES + (8 << 20)  # what was in flight was sent twice
    assert "not-sent" in account.kinds


def test_a_blob_that_is_there_is_not_sent_again(site: LinkSite, firm: str, tmp_path: Path) -> None:
    outgoing, account = Outgoing(site, firm, tmp_path, 100_000), Account()
    outgoing.upload(site.client(firm))
    outgoing.upload(site.client(firm, account=account))
    assert account.kinds == ["blob-control"]


def test_bytes_that_do_not_match_their_digest_are_refused_and_not_kept(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    outgoing = Outgoing(site, firm, tmp_path, 100_000)
    outgoing.path.write_bytes(bytes(100_000))
    with pytest.raises(LinkRefusedError, match="altered on this disk"):
        outgoing.upload(site.client(firm))
    assert not outgoing.target.exists()
    assert not outgoing.part.exists()


def test_a_corrupt_partial_blob_on_the_servers_disk_is_sent_anew(site: LinkSite, firm: str, tmp_path: Path) -> None:
    outgoing = Outgoing(site, firm, tmp_path, 100_000)
    outgoing.part.parent.mkdir()
    outgoing.part.write_bytes(bytes(50_000))
    outgoing.upload(site.client(firm))
    assert hashlib.sha256(outgoing.target.read_bytes()).hexdigest() == outgoing.ref.sha256


@pytest.mark.parametrize(
    ("requests", "status"),
    [
        pytest.param([], grpc.StatusCode.INVALID_ARGUMENT, id="an upload without an announcement"),
        pytest.param([b"\x01abc"], grpc.StatusCode.INVALID_ARGUMENT, id="a truncated announcement"),
        pytest.param([Announce("0" * 64, 9).encode() + b"!"], grpc.StatusCode.INVALID_ARGUMENT, id="left-over bytes"),
        pytest.param([bytes(2000)], grpc.StatusCode.INVALID_ARGUMENT, id="an announcement that is too long"),
        pytest.param(
            [Announce("0" * 64, 9).encode(), bytes(10)],
            grpc.StatusCode.INVALID_ARGUMENT,
            id="more bytes than were announced",
        ),
        pytest.param([Announce("1" * 64, 9).encode(), bytes(8)], grpc.StatusCode.ABORTED, id="fewer bytes"),
        pytest.param([Announce("0" * 64, 9).encode(), bytes(9)], grpc.StatusCode.DATA_LOSS, id="other bytes"),
        pytest.param(
            [Announce("0" * 64, 3 << 30).encode(), bytes(9)],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            id="more than the link takes",
        ),
        pytest.param([Announce("2" * 64, 9).encode(), bytes(64 << 20)], None, id="a chunk over every limit"),
    ],
)
def test_a_bad_upload_is_refused(
    site: LinkSite, firm: str, requests: list[bytes], status: grpc.StatusCode | None
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_upload(site, firm, requests)
    assert caught.value.code() is (status or grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert not any((site.home.uploads / firm).glob("[0-9a-f]" * 64))


def test_a_released_blob_reaches_the_firm_and_nothing_is_there_before_it_is_whole(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    array = blob(5 << 20)
    message = site.message(firm, arrays=[array])
    site.push(firm, message)
    target = tmp_path / message.arrays[0].sha256
    site.client(firm).download(message.arrays[0], target, patience_seconds=20)
    assert target.read_bytes() == array.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [target.name]


def test_a_download_goes_on_where_it_was_cut(site: LinkSite, firm: str, tmp_path: Path) -> None:
    array = blob(5 << 20)
    message = site.message(firm, arrays=[array])
    site.push(firm, message)
    target, account = tmp_path / message.arrays[0].sha256, Account()
    target.with_suffix(".part").write_bytes(array.tobytes()[: 3 << 20])
    site.client(firm, account=account).download(message.arrays[0], target, patience_seconds=20)
    assert target.read_bytes() == array.tobytes()
    assert [entry.offset_bytes for entry in account.entries] == [3 << 20]


def test_a_download_goes_on_after_the_link_was_killed(site: LinkSite, firm: str, tmp_path: Path) -> None:
    array = blob(80 << 20)
    message = site.message(firm, arrays=[array])
    site.push(firm, message)
    target, account = tmp_path / message.arrays[0].sha256, Account()
    client = site.client(firm, account=account)
    part = target.with_suffix(".part")
    loading = in_background(lambda: client.download(message.arrays[0], target, patience_seconds=60))
    eventually(lambda: part.exists() and part.stat().st_size > 10 << 20)
    site.kill()
    site.start()
    loading.join(40)
    assert np.array_equal(np.fromfile(target, np.uint16), array)
    first, *others = [entry.offset_bytes for entry in account.entries]
    assert first == 0
    assert others
    assert min(others) > 10 << 20


def test_a_corrupt_partial_download_is_fetched_anew(site: LinkSite, firm: str, tmp_path: Path) -> None:
    array = blob(1 << 20)
    message = site.message(firm, arrays=[array])
    site.push(firm, message)
    target = tmp_path / message.arrays[0].sha256
    target.with_suffix(".part").write_bytes(bytes(CHUNK_BYTES // 2))
    site.client(firm).download(message.arrays[0], target, patience_seconds=20)
    assert target.read_bytes() == array.tobytes()


def test_a_blob_altered_on_the_server_never_gets_its_name_at_the_firm(
    site: LinkSite, firm: str, tmp_path: Path
) -> None:
    message = site.message(firm, arrays=[blob(1 << 20, seed=4)])
    site.push(firm, message)
    (site.home.released / message.arrays[0].sha256).write_bytes(bytes(1 << 20))
    with pytest.raises(LinkRefusedError, match="does not match"):
        site.client(firm).download(message.arrays[0], tmp_path / "target", patience_seconds=20)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("what", ["released to another firm", "uploaded by another firm", "unknown", "forgotten"])
def test_a_firm_cannot_fetch_what_was_not_released_to_it(
    site: LinkSite, firm: str, other: str, tmp_path: Path, what: str
) -> None:
    ref = ArrayRef.of("a", blob(10_000, seed=5))
    if what in {"released to another firm", "forgotten"}:
        message: Envelope = site.message(other if "other" in what else firm, arrays=[blob(10_000, seed=5)])
        site.push(other if "other" in what else firm, message)
        if what == "forgotten":
            site.desk.forget([message.message_id])
    elif what == "uploaded by another firm":
        outgoing = Outgoing(site, other, tmp_path, 10_000)
        outgoing.upload(site.client(other))
        ref = outgoing.ref
    with pytest.raises(LinkRefusedError, match="no message released"):
        site.client(firm).download(ref, tmp_path / "target", patience_seconds=10)


@pytest.mark.parametrize("request_bytes", [b"", b"\x01" + bytes(3), Fetch("0" * 64, 0).encode() + b"x", bytes(5000)])
def test_a_malformed_fetch_is_refused(site: LinkSite, firm: str, request_bytes: bytes) -> None:
    with site.raw_channel(firm) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream("/dure.link.Firm/Download")(request_bytes, timeout=10, wait_for_ready=True))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_forgetting_a_message_deletes_the_blobs_its_reply_brought(site: LinkSite, firm: str, tmp_path: Path) -> None:
    outgoing, client = Outgoing(site, firm, tmp_path, 10_000), site.client(firm)
    outgoing.upload(client)
    client.reply(outgoing.reply, RecordKind.MASKED_UPDATE, patience_seconds=10)
    assert outgoing.target.exists()
    site.desk.forget([outgoing.message.message_id])
    assert not outgoing.target.exists()


def test_a_released_blob_is_deleted_once_no_message_brings_it_any_more(site: LinkSite, firm: str) -> None:
    message = site.message(firm, arrays=[blob(10_000, seed=6)])
    site.push(firm, message)
    digest = message.arrays[0].sha256
    site.desk.retract([digest])
    assert (site.home.released / digest).exists()
    site.desk.forget([message.message_id])
    site.desk.retract([digest])
    assert not (site.home.released / digest).exists()
