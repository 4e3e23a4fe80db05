"""`dure bench secagg`: what secure aggregation costs one firm and the server, beside what others would cost.

`run` plays the arms of each case in shuffled order; `ours`, `flower`, `plain` and `ckks` are the arms; `rehearsal` runs
the protocol's sessions for the messages; `memory` measures an arm's peak memory in a process of its own.
"""
