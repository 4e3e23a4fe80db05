"""A firm's own data: where it is (`mapping`), how files are read (`sources`), what a job gets of it (`load`).

Runs inside the trainer and in `dure-agent data check`, never in the agent. Its errors may quote the data: they go to
the firm's screen and its own log, and stay there.
"""
