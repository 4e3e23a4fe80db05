"""For `dure bench round --compare unencrypted` alone: the product's processes, with no masks in every other round.

`python -m dure_lab.bench.unmasked.agent`, `….server` and `….coordinator` replace the keystreams of the rounds that
`schedule` names by nothing. No command of the product starts them, and a firm with the product's agent in such a round
would only make noise of the sum. Messages, signatures, digests and tags stay as they are: what the two kinds of round
differ in is the encryption of the vector.
"""
