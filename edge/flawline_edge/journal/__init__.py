"""The journal: what survives an outage of the broker, a crash of the station or a power cut.

layout   the file: its tables, opening it, bringing an older one up to date
rows     what is written for a part, statement by statement
pending  what must reach the disk and can wait for it
writer   one thread: group commit, then tidying when nobody waits
bounds   how large and how old it may become, and what goes first
query    reading it, also while the station writes
journal  all of it behind one object
"""

from flawline_edge.journal.boot import next_boot
from flawline_edge.journal.bounds import Bounds, Evicted
from flawline_edge.journal.journal import Journal
from flawline_edge.journal.layout import JOURNAL_FILE, JournalError
from flawline_edge.journal.query import Query, Record, read_records
from flawline_edge.journal.rows import Accepted

__all__ = [
    "JOURNAL_FILE",
    "Accepted",
    "Bounds",
    "Evicted",
    "Journal",
    "JournalError",
    "Query",
    "Record",
    "next_boot",
    "read_records",
]
