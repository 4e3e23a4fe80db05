"""The console process: the operator's pages on loopback, and the enrolment API on its public port.

    python -m dure_server.console --home HOME

Two uvicorn servers in one process and on two ports, on purpose: what is public (enrolment, HTTPS) and what is not
(pages that have no sign-in yet, plain HTTP on 127.0.0.1 only) share no socket, no app and no middleware.
"""
