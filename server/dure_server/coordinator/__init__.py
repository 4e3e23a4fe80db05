"""The coordinator: one process a job, driving its rounds. It relays, adds and writes down; it can read no update.

`rounds.Coordinator` is the job's course from proposal to finish; `firms` is what it needs of a link; `record` is what
it keeps in the store. Nothing in here knows Flower: `dure_server.flower` makes a ServerApp of it.
"""
