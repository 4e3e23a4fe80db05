"""A second implementation of the protocol's derivations and of a firm, small and plain, for the vectors beside it.

Written from docs/protocol.md: nothing of Dure is imported. It needs Python, `cryptography` and numpy's float32. It is
made to be read and compared with, not to run a job: slow, without storage, without care for secrets in memory.

    python -m tests.vectors.reader     recompute every vector of the JSON files and say what differs
"""
