"""The link: one process that carries messages and blobs between the coordinator and the firms' agents (ADR 0001).

    firm's agent ──mutual TLS, one port──> link ──Unix socket "desk"── coordinator, one process a job
                                            │
                             store (journal of messages), uploads/<firm>/, released/

It relays, it does not read: bodies are opaque to it and are never logged.
"""
