"""Plays a script: requests to firms, one after another, and what each answers; then what the server makes of it.

A *side* is an implementation: `side.firm(name, seed, terms)` makes a firm with the methods `answer`, `check_sum`,
`check_witnesses` and `retire`, and `side.unmask` adds and opens. `side.Refused` carries the code of a refusal.
"""

from . import files


class Draws:
    """The randomness of one step: the bytes of the vector, in order."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def __call__(self, length):
        assert self.at + length <= len(self.data), "more randomness was drawn than the vector gives"
        self.at += length
        return self.data[self.at - length : self.at]

    @property
    def is_empty(self):
        return self.at == len(self.data)


def play(side, inputs):
    """What a script's steps are answered with, and its sums."""
    stage = Stage(side, inputs)
    for step in inputs["steps"]:
        stage.take(step)
    sums = [stage.opened(wanted) for wanted in inputs.get("sums", [])]
    answered = [{"step": step["name"]} | stage.replies[step["name"]] for step in inputs["steps"]]
    return {"replies": answered} | ({"sums": sums} if sums else {})


class Stage:
    """The firms of a script, standing where its beginning left them: the steps of the script it goes on from.

    is_whole: its own steps are taken too.
    """

    def __init__(self, side, inputs, is_whole=False):
        setup, before = _beginning(inputs)
        self.side, self.terms = side, setup["terms"] | inputs.get("policy", {})
        seeds = setup["identity_seeds"].items()
        self.firms = {name: side.firm(name, bytes.fromhex(seed), self.terms) for name, seed in seeds}
        self.replies, self.known = {}, {}  # known: requests and replies, of which later requests repeat pieces
        if "bytes_of" in inputs:
            other = Stage(side, files.case_of(*inputs["bytes_of"])["inputs"], is_whole=True)
            self.known |= {f"{inputs['bytes_of'][1]}: {name}": data for name, data in other.known.items()}
        for step in before + (inputs["steps"] if is_whole else []):
            self.take(step)

    def take(self, step, draw=None):
        """Play one step. draw: another randomness than the step's own, for who makes vectors."""
        drawn = draw or Draws(bytes.fromhex(step.get("randomness", "")))
        try:
            self.replies[step["name"]] = self._answer(self.firms[step["firm"]], step, drawn)
        except self.side.Refused as refused:
            self.replies[step["name"]] = {"refusal": str(refused.code)}
        else:
            assert draw or drawn.is_empty, "less randomness was drawn than the vector gives"
            if "reply" in self.replies[step["name"]]:
                self.known[f"{step['name']}: reply"] = bytes.fromhex(self.replies[step["name"]]["reply"])
        return self.replies[step["name"]]

    def opened(self, wanted):
        """What the server makes of the replies to some steps."""
        return {"name": wanted["name"]} | self.side.unmask(self.terms, wanted, self.replies)

    def _answer(self, firm, step, draw):
        if "sum" in step:
            firm.check_sum(step["sum"])
            return {"accepted": True}
        if "witnesses" in step:
            firm.check_witnesses(files.bytes_of(step["witnesses"], self.known), bytes.fromhex(step["model_hash"]))
            return {"accepted": True}
        if step.get("retire"):
            firm.retire()
            return {"retired": True}
        request = files.bytes_of(step["request"], self.known)
        self.known[f"{step['name']}: request"] = request
        return firm.answer(request, step, draw, _encapsulations(step))


def _beginning(inputs):
    """Whose terms and identities hold, and all steps before the script's own."""
    if "begins_with" not in inputs:
        return inputs, []
    earlier = files.case_of(*inputs["begins_with"])["inputs"]
    setup, before = _beginning(earlier)
    return setup, [*before, *earlier["steps"]]


def _encapsulations(step):
    """The KEM secret and ciphertext for each firm behind this one."""
    for name in step.get("encapsulations", []):
        case = files.case_of("encapsulations", name)
        yield bytes.fromhex(case["expected"]["secret"]), bytes.fromhex(case["inputs"]["ciphertext"])
