"""Fuzzing: every decoder takes damaged bytes and answers with a value or a typed refusal, within its memory.

    target     what a decoder may do: raise, return, allocate
    mutate     how bytes are damaged
    judge      what a decoder did with one input, and whether it may
    campaign   inputs without end for a target, counted
    targets/   one target for each decoder
    decoders   finds the decoders in the source, so that none goes without a target
    kept       inputs that once found a failure

`python -m tests.fuzz` runs long, the tests in this folder short. docs/fuzzing.md says more.
"""
