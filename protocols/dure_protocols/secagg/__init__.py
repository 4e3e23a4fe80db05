"""Secure aggregation: the server learns the sum over the firms and nothing else.

Read `run.run_secure_aggregation` first: it plays every party in turn. Then `firm.FirmSession`, one firm's side with
what it verifies at each step, and `server.Attempt`. `codec` turns floats into ring elements, `keystream` keys into
masks, `terms` binds everything to the job.
"""
