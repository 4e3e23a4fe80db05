"""Jobs on a stock Flower SuperLink, for consortia that already operate Flower.

    dure-server job propose job.toml                     # as on Dure's own link; firms joined and are approved, too
    DURE_SERVER_HOME=/srv/dure flower-superlink …
    python -m dure_server.superlink bundle               # writes the folder, the same for every job
    flwr run bundle SUPERLINK --run-config 'dure-job="milling"'

The SuperLink takes the place of the link only: enrolment, jobs, approvals and the store stay as they are, and updates
stay encrypted end to end. `dure-server run` must not run on the same home, or the job would have two coordinators.
Each firm's side is `dure_client.supernode_app`, which says what is weaker there.
"""
