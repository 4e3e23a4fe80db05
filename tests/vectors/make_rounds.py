"""Scripts of whole epochs and rounds: keys, retry mode with a drop-out, threshold mode with drop-outs."""

from dataclasses import replace
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from dure_protocols.messages import (
    AskKeys,
    Cohort,
    Delivery,
    EscrowedJoin,
    Invitation,
    PublishedSum,
    ReleaseRequest,
    Roster,
    VoteRequest,
)
from dure_protocols.secagg.escrow import delivery_for
from dure_protocols.secagg.handshake import mlkem_encapsulate
from dure_protocols.secagg.server import establish_for
from tests.vectors.make_scene import FOUR, THREE, Scene, pattern, update
from tests.vectors.project_side import terms_of
from tests.vectors.reader import files

LAYOUTS = {
    "three firms": {"parameters": 7, "bits": 12, "max_members": 3, "exact": 1},
    "four firms": {"parameters": 11, "bits": 10, "max_members": 4, "exact": 0},
}
CLIP, CAP = 0.25, 1000
RETRY, RETRY_SEED = "a firm drops out, a fresh attempt without it", "retry round"
LATE, LATE_SEED = "a firm drops out after it uploaded", "threshold round, late"


def encapsulation_name(firms, sender, receiver):
    return f"{firms.title}: {sender} to {receiver}"


def encapsulation_cases():
    """A ciphertext for each pair of either job, made with the operating system's randomness, once: the file's stay.

    They stay for the same seed only: ML-KEM opens a ciphertext for another key as well, to a secret that nobody has.
    """
    is_there = (files.FOLDER / "encapsulations.json").exists()
    cases = files.load("encapsulations")["cases"] if is_there else []
    kept = {(case["name"], case["inputs"]["seed"]): case["inputs"]["ciphertext"] for case in cases}
    for firms in (THREE, FOUR):
        for receiver in firms.names:
            seed = pattern(f"{firms.title}: {receiver} makes keys", 96)[32:]
            public = MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
            for sender in (name for name in firms.names if name < receiver):
                name = encapsulation_name(firms, sender, receiver)
                ciphertext = kept.get((name, seed.hex())) or mlkem_encapsulate(public)[1].hex()
                yield {
                    "name": name,
                    "operation": "decapsulation",
                    "shows": f"what {sender} sends to {receiver}, whose key comes of this seed",
                    "inputs": {"seed": seed.hex(), "ciphertext": ciphertext},
                }


def advertise(scene, who=None, epoch=1):
    """Steps of section 3.2; returns the roster."""
    firms = scene.firms
    entries = [scene.ask(f"{name} makes keys", name, AskKeys(firms.job, epoch)) for name in who or firms.names]
    return Roster(firms.job, epoch, tuple(reversed(entries)))  # no order is asked for, so none must be relied on


def encapsulations(firms, sender):
    return [encapsulation_name(firms, sender, receiver) for receiver in firms.names if receiver > sender]


def encapsulate(scene, name, roster):
    step = f"{name} accepts the roster"
    return scene.ask(step, name, roster, encapsulations=encapsulations(scene.firms, name))


def handshake(firms):
    scene = Scene(firms)
    roster = advertise(scene)
    sent = [encapsulate(scene, name, roster) for name in firms.names]
    for name in firms.names:
        scene.ask(f"{name} establishes", name, ciphertexts_for(name, firms, sent))
    return scene


def ciphertexts_for(name, firms, sent):
    request = establish_for(name, firms.job, 1, sent)
    return replace(request, ciphertexts=request.ciphertexts[::-1])


def key_cases():
    for firms in (THREE, FOUR):
        mode = "threshold" if firms.terms["threshold"] else "retry"
        shows = f"an epoch's keys of {firms.title}, whose job is in {mode} mode: advertised, encapsulated, established"
        yield handshake(firms).case(firms.title, shows)


def model_of(round_):
    """Hash and key of the global model before a round, of which a script needs no more."""
    return {"model_hash": pattern(f"model hash {round_}").hex(), "model_key": pattern(f"model key {round_}").hex()}


def contribution(firms, name, round_):
    layout = LAYOUTS[firms.title]
    count = 100 * (1 + firms.names.index(name)) + round_
    return {
        "layout": layout,
        "update": update(f"{name} {round_}", layout["parameters"]).tobytes().hex(),
        "weight": count / CAP,
        "count": count,
        "exact": [count * 0.375] * layout["exact"],
        "clip": CLIP,
    }


class Attempt:
    """One attempt of one round in a scene, step by step."""

    def __init__(self, scene, round_, attempt=1):
        self.scene, self.firms, self.place = scene, scene.firms, (1, round_, attempt)
        self.at = (self.firms.job, *self.place)
        self.label = f"{round_}.{attempt}"
        self.model = model_of(round_)
        self.joined, self.steps = {}, {"joins": [], "uploads": [], "releases": []}
        self.receipts, self.votes = {}, {}

    def step(self, name, does):
        return f"{self.label} {name} {does}"

    def join(self, *who):
        for name in who or self.firms.names:
            step = self.step(name, "joins")
            self.joined[name] = self.scene.ask(step, name, Invitation(*self.at, ()), **self.model)
            self.steps["joins"].append(step)
        return self

    @property
    def joins(self):
        replies = self.joined.values()
        return tuple(reply.join if isinstance(reply, EscrowedJoin) else reply for reply in replies)[::-1]

    def deliveries(self, name):
        replies = (reply for reply in self.joined.values() if isinstance(reply, EscrowedJoin) and reply.firm != name)
        return tuple(delivery_for(terms_of(self.firms.terms), name, reply) for reply in replies)[::-1]

    def cohort(self, name):
        return Cohort(*self.at, self.joins, self.deliveries(name))

    def mask(self, *who, cohorts=None):
        for name in who or self.joined:
            step = self.step(name, "masks")
            cohort = (cohorts or {}).get(name) or self.cohort(name)
            given = contribution(self.firms, name, self.place[1])
            self.receipts[name] = self.scene.ask(step, name, cohort, contribution=given)
            self.steps["uploads"].append(step)
        return self

    def vote_request(self):
        return VoteRequest(*self.at, tuple(self.receipts.values())[::-1])

    def vote(self, *who):
        for name in who or self.receipts:
            self.votes[name] = self.scene.ask(self.step(name, "votes"), name, self.vote_request())
        return self

    def release_request(self):
        receipts = () if self.votes else tuple(self.receipts.values())
        return ReleaseRequest(*self.at, receipts[::-1], tuple(self.votes.values())[::-1])

    def release(self, *who):
        for name in who or self.receipts:
            step = self.step(name, "releases")
            self.scene.ask(step, name, self.release_request())
            self.steps["releases"].append(step)
        return self

    def open(self):
        """The server opens the sum; what it publishes."""
        established = f"{self.firms.names[0]} establishes"
        wanted = {"place": list(self.place), "model_hash": self.model["model_hash"], "layout": self.layout}
        opened = self.scene.open(f"{self.label} the sum", established=established, **wanted, **self.steps)
        self.vector = opened["vector"]
        self.published = PublishedSum(
            *self.place,
            tuple(opened["members"][::-1]),
            tuple(opened["survivors"][::-1]),
            sha256(bytes.fromhex(self.vector)).digest(),
        )
        return self

    @property
    def layout(self):
        return LAYOUTS[self.firms.title]

    def checked_by(self, *who, how="accepts the sum"):
        for name in who:
            self.check(self.step(name, how), name)
        return self

    def check(self, step, name, code=None, published=None, vector=None, **model):
        published, vector = published or self.published, vector or self.vector
        self.scene.check_sum(step, name, published, vector, self.layout, self.model | model, code)


def retry_cases():
    scene = Scene(THREE, ["keys", "three firms"], seed=RETRY_SEED)
    Attempt(scene, 1).join().mask("firm-a", "firm-b")
    second = Attempt(scene, 1, 2).join("firm-a", "firm-b").mask().release().open()
    second.checked_by("firm-a", "firm-b", "firm-c")
    third = Attempt(scene, 3).join().mask().release().open()
    third.checked_by(*THREE.names)
    second.checked_by("firm-a", how="accepts the earlier sum again")
    yield scene.case(
        RETRY,
        "firm-c joins the first attempt and uploads nothing; the others mask again in a second, release and get their"
        " sum, which firm-c checks too; in round 3 (the ratchet moves twice) all take part",
    )


def threshold_cases():
    scene = Scene(FOUR, ["keys", "four firms"], seed="threshold round")
    first = Attempt(scene, 1).join().mask("firm-a", "firm-b", "firm-c").vote().release().open()
    first.checked_by(*FOUR.names)
    yield scene.case(
        "a firm drops out before it uploads",
        "firm-d joins and vanishes; three vote and release its escrow key's shares; its pair masks come off",
    )
    scene = Scene(FOUR, ["keys", "four firms"], seed=LATE_SEED)
    late = Attempt(scene, 1).join().mask().vote("firm-a", "firm-c", "firm-d").release("firm-a", "firm-c", "firm-d")
    late.open().checked_by(*FOUR.names)
    yield scene.case(
        LATE,
        "firm-b uploads and vanishes before it votes; the others' shares give its self seed, its vector is in the sum",
    )
    scene = Scene(FOUR, ["keys", "four firms"], seed="threshold round, complaint")
    round_ = Attempt(scene, 2).join()
    round_.mask("firm-a", cohorts={"firm-a": _spoiled(round_, "firm-a", "firm-c")}).mask("firm-b", "firm-c", "firm-d")
    round_.vote().release("firm-a", "firm-b", "firm-d", "firm-c").open().checked_by(*FOUR.names)
    yield scene.case(
        "a delivery that does not open is named in the receipt",
        "what firm-c is said to have escrowed for firm-a has another byte in its box: firm-a's receipt complains about"
        " firm-c, and its release has no share of it; the sum opens all the same",
    )


def _spoiled(attempt, name, dealer):
    """A cohort in which one delivery has a changed box."""
    cohort = attempt.cohort(name)

    def spoil(delivery):
        if delivery.dealer != dealer:
            return delivery
        shares = delivery.shares
        box = bytes([shares.box[0] ^ 1]) + shares.box[1:]
        changed = type(shares)(shares.receiver, box, shares.self_commitment, shares.escrow_commitment)
        return Delivery(delivery.dealer, delivery.key_commitment, changed)

    return Cohort(*attempt.at, cohort.joins, tuple(map(spoil, cohort.deliveries)))
