"""Records in, packed batches out, in an order that is a function of the position alone.

specs → source → record → documents → batch
records    files, generators and datasets, each answering for any of its records
sources    the order in which records come, several of them mixed
rendering  a record as documents: tokens, and which of them are learnt
packing    documents end to end in one batch, shared among ranks
feed       the batches of each step, and a position from which a run goes on
"""

from ossia.train.data.accounting import Accounting
from ossia.train.data.feed import Feed, PackedFeed, account, batches_of, check, packed_feed
from ossia.train.data.packing import Batch, Document, collate
from ossia.train.data.rendering import Rendering, TooLong
from ossia.train.data.sources import Source, source_of

__all__ = [
    "Accounting",
    "Batch",
    "Document",
    "Feed",
    "PackedFeed",
    "Rendering",
    "Source",
    "TooLong",
    "account",
    "batches_of",
    "check",
    "collate",
    "packed_feed",
    "source_of",
]
