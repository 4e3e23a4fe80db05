"""What travels between firms and server, and the mathematics on it: messages, identities, secure aggregation.

Numpy and cryptography only: no torch, no flwr, no network, no files. Everything here can be tested without a server.
"""
