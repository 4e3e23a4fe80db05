"""What a firm believes of what is published: sums that carry their members' tag, snapshots that others vouch for
(docs/protocol.md, section 7). Pure functions of the job's terms and of what the firm's session remembers.
"""

from dure_protocols.errors import RefusalCode, RefusedError
from dure_protocols.messages import Invitation, PublishedSum
from dure_protocols.secagg.codec import VectorLayout, Words, carries_tag
from dure_protocols.secagg.disclosure import Kind
from dure_protocols.secagg.masks import tag_key
from dure_protocols.secagg.session_state import NO_HASH, SessionState
from dure_protocols.secagg.terms import Terms, check_join, mask_context


def check_sum(
    terms: Terms,
    state: SessionState,
    firm: str,
    published: PublishedSum,
    words: Words,
    layout: VectorLayout,
    model_hash: bytes,
) -> None:
    """Check a published sum before it is applied; model_hash: the global state's, as this firm computed it.

    Verifies: (1) we hold the tag key of its epoch; (2) its members are of its cohort, and that of the job, and are
    at least two, of statistics all; (3) they fit what this firm did; (4) the sum carries the tag of that very
    attempt, cohort and model, and of those very members; (5) it counts as many vectors as it names members.
    Raises RefusedError, and MessageError for a vector of another length.
    """
    known = next((epoch for epoch in state.epochs if epoch.epoch == published.epoch), None)
    if known is None:  # (1)
        raise RefusedError(
            RefusalCode.SNAPSHOT_NEEDED, f"this firm has no tag key of epoch {published.epoch} to check sums with"
        )
    members, cohort = set(published.members), set(published.cohort)
    is_whole = members == cohort or terms.threshold is not None
    sizes = (len(members), len(cohort)) == (len(published.members), len(published.cohort))
    least = len(terms.firms) if Kind.of(published.round) is Kind.STATISTICS else 2
    if not (members <= cohort <= set(terms.firms) and is_whole and sizes and len(members) >= least):  # (2)
        raise RefusedError(RefusalCode.ROSTER, f"the sum of round {published.round} is over no member set of it")
    if not _may_have_published(state, firm, published):  # (3)
        raise RefusedError(
            RefusalCode.ROSTER,
            f"the sum of round {published.round} names other members than this firm released to",
        )
    place = published.epoch, published.round, published.attempt
    context = mask_context(terms, known.transcript, *place, published.cohort, model_hash)
    if not carries_tag(words, layout, tag_key(known.tag_key, context), published.members):  # (4)
        raise RefusedError(
            RefusalCode.FALSE_SUM,
            f"the sum of round {published.round} does not carry the tag of what its members sent: the server"
            " changed it, or one of them runs another program",
        )
    counted = int(words[layout.tail][1])
    if counted != len(members):  # (5)
        raise RefusedError(
            RefusalCode.FALSE_SUM,
            f"the sum of round {published.round} counts {counted} vectors and names {len(members)} members",
        )


def awaits_sum(state: SessionState, round_: int) -> bool:
    """Whether the firm uploaded in a round that others may have opened over members that it does not know yet."""
    is_uploaded = state.contributed_key != NO_HASH and state.contributed_round == round_
    return is_uploaded and not (state.released_members and state.released_round == round_)


def check_witnesses(terms: Terms, state: SessionState, firm: str, invitation: Invitation, model_hash: bytes) -> None:
    """Check that enough other firms stand on the global state of a snapshot, whose hash the caller computed.

    Verifies: (1) each witness joined the very attempt of the invitation; (2) on this hash; (3) they are as many other
    firms as `Terms.witnesses` asks for. Raises RefusedError.
    """
    (snapshot,) = invitation.snapshot
    place = invitation.epoch, invitation.round, invitation.attempt
    if not state.epochs:
        raise RefusedError(RefusalCode.STATE_LOST, f"this firm holds no pair keys of epoch {invitation.epoch}")
    for join in snapshot.witnesses:
        check_join(terms, state.epochs[-1].transcript, place, join)  # (1)
    standing = {join.firm for join in snapshot.witnesses if join.model_hash == model_hash} - {firm}  # (2)
    if len(standing) < terms.witnesses:  # (3)
        raise RefusedError(
            RefusalCode.GLOBAL_MODEL,
            f"{len(standing)} other firms signed the hash of the offered model; {terms.witnesses} are needed",
        )


def _may_have_published(state: SessionState, firm: str, published: PublishedSum) -> bool:
    """Whether a sum fits what this firm did: it holds exactly those it released to, and never a vector of its own that
    it did not send. In threshold mode the others may have opened what it uploaded."""
    if state.released_members and published.round < state.released_round:
        return True
    if state.released_members and published.round == state.released_round:
        return tuple(sorted(published.members)) == state.released_members
    return firm not in published.members or awaits_sum(state, published.round)
