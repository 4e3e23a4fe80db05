"""What the link counts of a request, however it ends."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import CollectorRegistry

from dure_server.link.metrics import LinkMetrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_a_request_is_counted_by_its_bytes_and_its_status() -> None:
    metrics = LinkMetrics()
    with metrics.call("reply") as call:
        assert value(metrics.registry, "dure_link_streams", method="reply") == 1
        assert call.received(b"12345") == b"12345"
        assert call.sent(b"") == b""
    with metrics.call("reply") as call:
        call.status = grpc.StatusCode.NOT_FOUND
    get = metrics.registry
    assert value(get, "dure_link_bytes_total", method="reply", direction="up") == 5
    assert value(get, "dure_link_requests_total", method="reply", status="OK") == 1
    assert value(get, "dure_link_requests_total", method="reply", status="NOT_FOUND") == 1
    assert value(get, "dure_link_messages_total", direction="up") == 1  # what was refused is no message
    assert value(get, "dure_link_streams", method="reply") == 0


def test_a_stream_is_counted_chunk_by_chunk_and_a_cut_one_as_cancelled() -> None:
    metrics = LinkMetrics()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"12"
        yield b"345"
        raise asyncio.CancelledError

    async def story() -> list[bytes]:
        seen = []
        with metrics.call("upload") as call:
            async for chunk in call.received(chunks()):
                seen.append(chunk)
                assert value(metrics.registry, "dure_link_bytes_total", method="upload", direction="up") == sum(
                    map(len, seen)
                )
        return seen

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(story())
    assert value(metrics.registry, "dure_link_requests_total", method="upload", status="CANCELLED") == 1
    assert value(metrics.registry, "dure_link_streams", method="upload") == 0


def test_what_a_subscription_brings_down_are_messages() -> None:
    metrics = LinkMetrics()
    with metrics.call("subscribe") as call:
        for _ in range(3):
            call.sent(b"message")
    assert value(metrics.registry, "dure_link_messages_total", direction="down") == 3
    assert value(metrics.registry, "dure_link_bytes_total", method="subscribe", direction="down") == 21
