"""What a firm does for a job: decide on it, answer its coordinator, keep its state, and see what it was worth.

Begin with `firm.Firm`, which answers every request; `side.JobSide` is one job's course, `folder` its files.
"""
