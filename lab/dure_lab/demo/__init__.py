"""`dure demo`: a consortium on this machine, from invitation to a table of what it was worth to each firm.

`course` runs it, `report` says what came out, `plot` draws the rounds.
"""
