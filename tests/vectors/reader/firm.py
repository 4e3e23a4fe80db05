"""A firm, message by message (docs/protocol.md, sections 3, 6, 7.2, 7.5 and 8). Refuses before it changes anything."""

from fractions import Fraction

from cryptography.exceptions import InvalidTag

from . import codec, keys, messages, sharing, wire
from .wire import Refused, derive, numbers


class Firm:
    """One firm of one job. terms: as in the vector files. Each answer is the reply's fields, or raises Refused."""

    def __init__(self, name, seed, terms):
        self.name, self.seed = name, seed
        self.job = bytes.fromhex(terms["job_digest"])
        self.firms = {firm: bytes.fromhex(key) for firm, key in terms["firms"].items()}
        self.threshold = terms["threshold"]
        self.minimum = max(terms["minimum_cohort"], self.threshold or 0)
        self.differences = terms["minimum_statistics_difference"], terms["minimum_difference"]
        self.models, self.cohorts = set(), []  # over all jobs (section 8)
        self.epoch, self.ephemeral, self.roster, self.sent = 0, None, None, None
        self.epochs, self.roots, self.root_round = {}, {}, 0
        self.place, self.phase = (0, 0, 0), "idle"
        self.released_round, self.released_to, self.contributed = None, [], None
        self.retired = False

    # Keys of an epoch (section 3)

    def advertise(self, request, draw):
        if self.retired:
            raise Refused("out-of-order")
        if request["epoch"] <= self.epoch:
            raise Refused("replay")
        self.epoch, self.ephemeral, self.roster, self.roots = request["epoch"], draw(96), None, {}
        self.phase = "idle"
        x25519, mlkem = keys.public_halves(self.ephemeral)
        parts = numbers(self.epoch), self.name.encode(), x25519, mlkem
        signature = self.sign("dure advertisement", *parts)
        return self.reply("KeyAdvertisement", epoch=self.epoch, x25519=x25519, mlkem=mlkem, signature=signature)

    def encapsulate(self, request, draw, encapsulations):
        """encapsulations: (KEM secret, ciphertext) for each firm behind this one."""
        if not self.ephemeral or self.roster or request["epoch"] != self.epoch:
            raise Refused("out-of-order")
        entries = sorted(request["advertisements"], key=lambda entry: entry["firm"])
        if [entry["firm"] for entry in entries] != sorted(self.firms):
            raise Refused("roster")
        known = {entry["firm"]: entry for entry in entries}
        if (known[self.name]["x25519"], known[self.name]["mlkem"]) != keys.public_halves(self.ephemeral):
            raise Refused("roster")
        for entry in entries:
            if entry["epoch"] != self.epoch:
                raise Refused("replay")
            parts = numbers(entry["epoch"]), entry["firm"].encode(), entry["x25519"], entry["mlkem"]
            self.check(entry["firm"], entry["signature"], "dure advertisement", *parts)
        roster = keys.roster_digest(self.epoch, entries)
        x25519 = {entry["firm"]: entry["x25519"] for entry in entries}
        is_first = self.name == min(self.firms)
        tag_key = draw(32) if is_first else None
        sent, roots = [], {}
        for peer in sorted(firm for firm in self.firms if firm > self.name):
            secret, ciphertext = next(encapsulations)
            root = keys.pair_root(self.ephemeral, x25519[peer], secret, roster, self.name, peer, ciphertext)
            box = wire.seal(derive(root, "dure tag key box"), tag_key) if is_first else b""
            signature = self.sign("dure ciphertext", roster, self.name.encode(), peer.encode(), ciphertext, box)
            key = {"sender": self.name, "receiver": peer, "ciphertext": ciphertext, "tag_box": box}
            sent.append(key | {"signature": signature})
            roots[peer] = root
        self.roster, self.x25519, self.tag_key, self.new_roots = roster, x25519, tag_key, roots
        return self.reply("KeyCiphertexts", epoch=self.epoch, ciphertexts=sent)

    def establish(self, request):
        if not self.ephemeral or not self.roster or request["epoch"] != self.epoch:
            raise Refused("out-of-order")
        received = request["ciphertexts"]
        if sorted(key["sender"] for key in received) != sorted(firm for firm in self.firms if firm < self.name):
            raise Refused("roster")
        roots = dict(self.new_roots)
        for key in received:
            if key["receiver"] != self.name:
                raise Refused("roster")
            sender, ciphertext, box = key["sender"], key["ciphertext"], key["tag_box"]
            parts = self.roster, sender.encode(), self.name.encode(), ciphertext, box
            self.check(sender, key["signature"], "dure ciphertext", *parts)
            secret = keys.decapsulate(self.ephemeral[32:], ciphertext)
            root = keys.pair_root(
                self.ephemeral, self.x25519[sender], secret, self.roster, sender, self.name, ciphertext
            )
            roots[sender] = root
        first, tag_key = min(self.firms), self.tag_key
        if first != self.name:
            box = next(key["tag_box"] for key in received if key["sender"] == first)
            try:
                tag_key = wire.unseal(derive(roots[first], "dure tag key box"), box)
            except InvalidTag:
                raise Refused("roster") from None
        self.ephemeral, self.roots, self.root_round = None, roots, 0
        self.epochs[self.epoch] = keys.transcript_of(self.roster, tag_key), tag_key
        return self.reply("Established", epoch=self.epoch, transcript=self.transcript)

    # A round (section 6)

    def join(self, request, model_hash, model_key, draw):
        if self.retired:
            raise Refused("out-of-order")
        if not self.roots or request["epoch"] != self.epoch:
            raise Refused("state-lost")
        place = request["epoch"], request["round"], request["attempt"]
        if place[1:] <= self.place[1:]:
            raise Refused("replay")
        if self.released_round is not None and place[1] <= self.released_round:
            raise Refused("already-released")
        if model_key in self.models and self.contributed != (place[1], model_key):
            raise Refused("already-released")
        self.roots = {peer: keys.ratchet(root, place[1] - self.root_round) for peer, root in self.roots.items()}
        self.root_round, self.place, self.phase = place[1], place, "joined"
        self.model_hash, self.model_key, self.self_seed = model_hash, model_key, draw(32)
        escrow, committed = None, bytes(32)
        if self.threshold:
            attempt_keys = {peer: keys.attempt_key(root, place[2]) for peer, root in self.roots.items()}
            box_keys = {peer: keys.box_key(root, place[2], self.name) for peer, root in self.roots.items()}
            escrow = sharing.deal(self.firms, self.threshold, self.self_seed, attempt_keys, box_keys, draw)
            committed = sharing.escrow_digest(escrow)
        parts = self.transcript, numbers(*place), self.name.encode(), model_hash, committed
        signature = self.sign("dure join", *parts)
        fields = dict(zip(("epoch", "round", "attempt"), place, strict=True))
        join = self.reply("Join", **fields, model_hash=model_hash, escrow=committed, signature=signature)
        return join if escrow is None else {"kind": "EscrowedJoin", "join": join, "escrow": escrow}

    def accept_cohort(self, request):
        """Returns the keys of this attempt's masks: added, subtracted, and the tag's."""
        self.check_place(request, {"joined", "masked", "uploaded", "voted", "released"})
        if self.phase != "joined":
            raise Refused("attempt-spent")
        joins = request["joins"]
        members = self.members_among(joins, self.firms)
        for join in joins:
            self.check_join(join, self.place)
            if join["model_hash"] != self.model_hash:
                raise Refused("global-model")
        self.check_cohort(members)
        attempt = self.place[2]
        attempt_keys = {peer: keys.attempt_key(root, attempt) for peer, root in self.roots.items()}
        self.held = self.open_deliveries(request["deliveries"], members, attempt_keys)
        self.members, self.phase = members, "masked"
        self.context = keys.mask_context(self.job, self.transcript, self.place, members, self.model_hash)
        masks = {peer: keys.pair_mask_key(attempt_keys[peer], self.context) for peer in members if peer != self.name}
        add = [keys.self_mask_key(self.self_seed, self.context)]
        add += [masks[peer] for peer in members if peer > self.name]
        subtract = [masks[peer] for peer in members if peer < self.name]
        return add, subtract, keys.attempt_tag_key(self.epochs[self.epoch][1], self.context)

    def open_deliveries(self, deliveries, members, attempt_keys):
        if not self.threshold:
            if deliveries:
                raise Refused("malformed")
            return {}
        if sorted(delivery["dealer"] for delivery in deliveries) != [peer for peer in members if peer != self.name]:
            raise Refused("roster")
        held = {}
        for delivery in deliveries:
            dealer = delivery["dealer"]
            box_key = keys.box_key(self.roots[dealer], self.place[2], dealer)
            shares = sharing.open_delivery(delivery, self.name, attempt_keys[dealer], box_key)
            if shares is not None:
                held[dealer] = shares
        return held

    def sign_upload(self, vector):
        """The receipt of a masked vector, given as bytes."""
        self.phase, self.vector_digest = "uploaded", wire.sha256(vector)
        complaints = []
        if self.threshold:
            complaints = [peer for peer in self.members if peer != self.name and peer not in self.held]
            self.contributed = self.place[1], self.model_key
            self.models.add(self.model_key)
        parts = self.context, self.name.encode(), self.vector_digest, wire.names(complaints)
        fields = {"context": self.context, "vector_digest": self.vector_digest, "complaints": complaints}
        return self.reply("MaskedUpdate", **fields, signature=self.sign("dure masked update", *parts))

    def vote(self, request):
        self.check_place(request, {"uploaded", "voted"} if self.threshold else set())
        survivors = self.members_among(request["uploads"], self.members)
        self.check_receipts(request["uploads"])
        if self.phase == "voted" and survivors != self.survivors:
            raise Refused("already-released")
        self.check_cohort(survivors)
        self.phase, self.survivors = "voted", survivors
        agreed = keys.members_digest(survivors)
        signature = self.sign("dure vote", self.context, self.name.encode(), agreed)
        return self.reply("Vote", context=self.context, survivors=agreed, signature=signature)

    def release(self, request):
        self.check_place(request, {"voted", "released"} if self.threshold else {"uploaded", "released"})
        if self.threshold:
            self.check_votes(request["votes"])
        else:
            listed = sorted(receipt["firm"] for receipt in request["uploads"])
            if listed != self.members:
                raise Refused("roster")
            self.check_receipts(request["uploads"])
            self.survivors = self.members
        self.phase, self.released_round, self.released_to = "released", self.place[1], self.survivors
        self.note(self.place[1], self.model_key, self.survivors)
        own = [[peer, self.held[peer][0]] for peer in self.survivors if peer in self.held]
        dropped = [peer for peer in self.members if peer not in self.survivors]
        escrowed = [[peer, self.held[peer][1]] for peer in dropped if peer in self.held]
        lists = b"".join(messages.write(messages.SHARES, shares) for shares in (own, escrowed))
        signature = self.sign("dure release", self.context, self.name.encode(), self.self_seed, lists)
        fields = {"context": self.context, "seed": self.self_seed, "self_shares": own, "escrow_shares": escrowed}
        return self.reply("Release", **fields, signature=signature)

    def check_votes(self, votes):
        voters = {vote["firm"] for vote in votes}
        if len(voters) != len(votes) or not voters <= set(self.survivors) or len(voters) < self.threshold:
            raise Refused("roster")
        agreed = keys.members_digest(self.survivors)
        for vote in votes:
            if (vote["context"], vote["survivors"]) != (self.context, agreed):
                raise Refused("replay")
            self.check(vote["firm"], vote["signature"], "dure vote", self.context, vote["firm"].encode(), agreed)

    def check_receipts(self, receipts):
        for receipt in receipts:
            if receipt["context"] != self.context:
                raise Refused("replay")
            parts = (receipt["firm"].encode(), receipt["vector_digest"], wire.names(receipt["complaints"]))
            self.check(receipt["firm"], receipt["signature"], "dure masked update", self.context, *parts)
            if receipt["firm"] == self.name and receipt["vector_digest"] != self.vector_digest:
                raise Refused("roster")

    # What is published (section 7)

    def check_sum(self, published, total, layout, model_hash, model_key):
        """Check a published sum, and note it. total: words."""
        if published["epoch"] not in self.epochs:
            raise Refused("snapshot-needed")
        transcript, tag_key = self.epochs[published["epoch"]]
        members, cohort = published["members"], published["cohort"]
        is_set = len(set(members)) == len(members) and len(set(cohort)) == len(cohort)
        is_whole = self.threshold or set(members) == set(cohort)
        least = len(self.firms) if published["round"] == 0 else 2
        is_of_job = set(members) <= set(cohort) <= set(self.firms) and len(members) >= least
        if not (is_set and is_whole and is_of_job and self.fits(published["round"], members)):
            raise Refused("roster")
        place = published["epoch"], published["round"], published["attempt"]
        context = keys.mask_context(self.job, transcript, place, cohort, model_hash)
        if not codec.carries_tag(layout, total, keys.attempt_tag_key(tag_key, context), members):
            raise Refused("false-sum")
        if total[layout.packed + 1] != len(members):
            raise Refused("false-sum")
        if self.name in members:
            self.note(published["round"], model_key, members)

    def fits(self, round_, members):
        """Whether a sum over these members fits what this firm did itself."""
        if self.released_round is not None and round_ <= self.released_round:
            return round_ < self.released_round or sorted(members) == sorted(self.released_to)
        sent = self.threshold and self.contributed and self.contributed[0] == round_
        return self.name not in members or bool(sent)

    def check_witnesses(self, request, model_hash):
        if not self.epochs:
            raise Refused("state-lost")
        witnesses = request["snapshot"][0]["witnesses"]
        for join in witnesses:
            self.check_join(join, (request["epoch"], request["round"], request["attempt"]))
        standing = {join["firm"] for join in witnesses if join["model_hash"] == model_hash} - {self.name}
        if len(standing) < min(len(self.firms) - 1, 2 * len(self.firms) // 3 + 1):
            raise Refused("global-model")

    def retire(self):
        self.retired, self.roots, self.epochs, self.phase = True, {}, {}, "retired"

    # Small things

    @property
    def transcript(self):
        return self.epochs[self.epoch][0]

    def reply(self, kind, **fields):
        return {"kind": kind, "firm": self.name} | fields

    def sign(self, label, *parts):
        return wire.sign(self.seed, label, self.job, *parts)

    def check(self, firm, signature, label, *parts):
        if firm not in self.firms:
            raise Refused("roster")
        wire.check_signature(self.firms[firm], signature, label, self.job, *parts)

    def check_place(self, request, phases):
        if (request["epoch"], request["round"], request["attempt"]) != self.place or self.phase not in phases:
            raise Refused("out-of-order")

    def check_join(self, join, place):
        if (join["epoch"], join["round"], join["attempt"]) != place:
            raise Refused("replay")
        parts = self.transcript, numbers(*place), join["firm"].encode(), join["model_hash"], join["escrow"]
        self.check(join["firm"], join["signature"], "dure join", *parts)

    def members_among(self, entries, possible):
        """The firms of entries: possible ones, each once, this one among them, and enough."""
        listed = sorted(entry["firm"] for entry in entries)
        if len(set(listed)) != len(listed) or not set(listed) <= set(possible) or self.name not in listed:
            raise Refused("roster")
        if len(listed) < self.minimum:
            raise Refused("cohort-too-small")
        return listed

    def check_cohort(self, members):
        """The differencing guard of section 8."""
        kind = min(self.place[1], 1)
        least, new = self.differences[kind], {self.firms[name] for name in members}
        if least <= 1:
            return
        earlier = [cohort for other, cohort in self.cohorts if other == kind]
        if any(0 < len(new ^ cohort) < least for cohort in earlier) or shows_one([*earlier, new]):
            raise Refused("cohort-too-small")

    def note(self, round_, model_key, members):
        self.models.add(model_key)
        self.cohorts.append((min(round_, 1), {self.firms[name] for name in members}))


def shows_one(cohorts):
    """Whether a unit vector lies in the rational span of the cohorts: whether adding it leaves the rank as it is."""
    firms = sorted(set().union(*cohorts))
    rows = [[Fraction(firm in cohort) for firm in firms] for cohort in cohorts]
    units = [[Fraction(one == other) for other in firms] for one in firms]
    return any(_rank([*rows, unit]) == _rank(rows) for unit in units)


def _rank(rows):
    rows, rank = [list(row) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((row for row in rows[rank:] if row[column]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(rank, pivot)
        rank += 1
        for row in rows[rank:]:
            factor = row[column] / pivot[column]
            row[:] = [value - factor * other for value, other in zip(row, pivot, strict=True)]
    return rank
