"""The firm's own page, `dure-agent ui`: what the commands tell and do, in a browser on this machine.

    access      who may look: a one-time code, and the session it is exchanged for
    guard       which requests are heard at all
    app         routes
    acts        what a button does: what its command does
    view, left  what the pages show
    serve       the socket on loopback

It reads and writes the same files as the commands, so it works whether or not the agent runs. Looking at it sends
nothing to anybody.
"""
