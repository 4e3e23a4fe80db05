"""The agent's one connection to the outside: mutual TLS, outbound, everything recorded before it leaves."""
