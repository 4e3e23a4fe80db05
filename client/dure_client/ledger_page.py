"""An exported ledger on one page for an auditor: what left, in plain words and bytes, and how to check it.

One HTML file without scripts, pictures or anything from elsewhere. It summarises; the export beside it is what proves.
"""

from collections.abc import Iterable, Mapping
from html import escape
from types import MappingProxyType
from typing import Final

from dure_client.ledger_export import Export
from dure_protocols.identity import fingerprint, grouped
from dure_protocols.ledger import RecordKind

PLAIN_WORDS: Final[Mapping[RecordKind, str]] = MappingProxyType(
    {
        RecordKind.ENROLMENT: "Joining: the invitation's token and this firm's public keys",
        RecordKind.RENEWAL: "A request to renew the certificate of the connection",
        RecordKind.SUBSCRIPTION: "The agent says that it is here, and its version",
        RecordKind.ACKNOWLEDGEMENT: "A delivery has arrived",
        RecordKind.APPROVAL: "This firm's signed yes to a job",
        RecordKind.KEYS: "Public keys for a job, signed",
        RecordKind.CIPHERTEXTS: "Secrets for the other firms, encrypted so that the server cannot read them",
        RecordKind.ESTABLISHED: "All keys of a job have arrived",
        RecordKind.JOIN: "This firm takes part in a round",
        RecordKind.MASKED_UPDATE: "A signed receipt for a masked update",
        RecordKind.BLOB: "A masked update: looks like noise until it is summed with those of the other firms",
        RecordKind.BLOB_CONTROL: "Which transfer is meant, and from which byte on",
        RecordKind.VOTE: "Whose sum may be opened",
        RecordKind.RELEASE: "This round's own mask, after all have sent: opens the sum, not this firm's part of it",
        RecordKind.FINISHED: "This firm has the sum; the digest of its model",
        RecordKind.REFUSAL: "A refusal or an absence, as a code without its reason",
        RecordKind.HEAD: "How many records this ledger has and the hash of the last, signed",
        RecordKind.LEAVE: "This firm's signed word that it leaves a job or the consortium",
        RecordKind.NOT_SENT: "Taken back: recorded, but the connection was cut before it left",
        RecordKind.REPAIR: "A line that a crash tore was removed from the ledger; nothing left",
    }
)

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2530; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p.lead { margin-top: 0; color: #55616e }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35rem .8rem .35rem 0 }
th { font-weight: 600; color: #55616e; border-bottom: 2px solid #d8dee5 } td { border-bottom: 1px solid #e8ecf0 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tr.all td { font-weight: 600; border-bottom: 0 } td.kind { color: #55616e; white-space: nowrap }
code, pre { font: 13px/1.5 ui-monospace, monospace } pre { background: #f3f5f8; padding: .8rem 1rem; overflow-x: auto }
code { overflow-wrap: anywhere } .doubt { border-left: 4px solid #b3261e; padding: .4rem 1rem; background: #fdf1f0 }
@media print { body { margin: 0; max-width: none } pre { white-space: pre-wrap } }
""".strip()


def page(made: Export, file_name: str) -> str:
    """The whole page. file_name: of the export that it belongs to."""
    totals, words = made.totals, escape
    title = f"What left {made.firm}"
    kinds = [
        (words(PLAIN_WORDS[kind]), kind.value, totals.num_by_kind[kind], totals.bytes_by_kind[kind])
        for kind in sorted(totals.num_by_kind, key=lambda kind: -totals.bytes_by_kind[kind])
    ]
    jobs = [
        (words(job), sum(1 for name, _ in totals.bytes_by_round if name == job), totals.bytes_by_job[job])
        for job in sorted(totals.bytes_by_job)
    ]
    without_job = totals.sent_bytes - sum(totals.bytes_by_job.values())
    period = f"{_minute(made.times[0])} to {_minute(made.times[1])} UTC" if totals.num_records else "nothing yet"
    parts = [
        f"<h1>{words(title)}</h1>",
        f'<p class="lead">{totals.sent_bytes:,} bytes in {totals.num_records:,} records, {period}.</p>',
        *(f'<p class="doubt">{words(doubt)}</p>' for doubt in made.doubts),
        "<p>Everything that this firm's agent sent stands in a ledger, written before it left: kind, size and digest of"
        " each message, chained by hashes and signed. Nothing else leaves the agent; rows, columns, file names and this"
        " firm's own counts and metrics are not among these kinds.</p>",
        "<h2>By kind</h2>",
        _table(("What it is", "Kind in the ledger", "Records", "Bytes"), kinds, totals.num_records, totals.sent_bytes),
        "<h2>By job</h2>",
        _table(("Job", "Sums", "Bytes"), [*jobs, ("Outside of jobs", "", without_job)], "", totals.sent_bytes),
        "<h2>Who vouches for it</h2>",
        *_vouching(made),
        "<h2>How to check it</h2>",
        *_checking(made, file_name),
    ]
    head = f'<meta charset="utf-8"><title>{words(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _vouching(made: Export) -> Iterable[str]:
    end = f"record {made.head.number:,} with hash <code>{grouped(made.head.hash.hex())}</code>"
    yield (
        f"<p>The ledger ends with {end}. On the way, the firm told the server {made.num_statements:,} times where it"
        " ended.</p>"
    )
    own = made.countersigned
    if own is None:
        yield "<p>The server has not countersigned any of it yet.</p>"
    else:
        broken = f" It counts {own.num_breaks} breaks between what the firm told it." if own.num_breaks else ""
        yield (
            f"<p>On {_minute(own.time)} UTC the server countersigned what the firm told it of record"
            f" {own.statement.head.number:,}.{broken} It shows that to the firms that work with this one, and they keep"
            " it: with their exports, this ledger can be held to it.</p>"
        )
    if made.others:
        yield "<p>Of others, this firm holds:</p>"
        rows = [(escape(each.firm), f"{_minute(each.time)} UTC", each.statement.head.number) for each in made.others]
        yield _table(("Firm", "Countersigned", "Record"), rows)


def _checking(made: Export, file_name: str) -> Iterable[str]:
    command = f'dure-agent ledger verify {file_name} \\\n  --fingerprint "{grouped(fingerprint(made.public_key))}"'
    if made.root_fingerprint:
        command += f' \\\n  --root-fingerprint "{grouped(made.root_fingerprint)}"'
    yield (
        f"<p>This page summarises <code>{escape(file_name)}</code>; that file is the proof. On any machine with Dure,"
        " without a network and without this firm's keys:</p>"
    )
    yield f"<pre>{escape(command)}</pre>"
    yield (
        "<p>Take the fingerprints from somewhere else than this page: the firm's from the firm or its contract, the"
        " consortium's from the agreement. A changed byte is named by its line. To hold the firm to what others keep of"
        " it, add <code>--witness</code> and another firm's export.</p>"
    )


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str | int, ...]], *sums: str | int) -> str:
    """Text in a cell is HTML already. sums: the last columns of a last row."""
    cells = [_row(row) for row in rows]
    if sums:
        cells.append(_row(("In all", *[""] * (len(titles) - len(sums) - 1), *sums), ' class="all"'))
    heads = "".join(f'<th class="n">{title}</th>' if title in _NUMBERS else f"<th>{title}</th>" for title in titles)
    return f"<table><tr>{heads}</tr>\n" + "\n".join(cells) + "\n</table>"


_NUMBERS: Final = frozenset({"Records", "Sums", "Bytes", "Record"})


def _row(values: tuple[str | int, ...], kind: str = "") -> str:
    cells = (f'<td class="n">{value:,}</td>' if isinstance(value, int) else f"<td>{value}</td>" for value in values)
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
