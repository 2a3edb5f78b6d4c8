"""What operators can do: grant, refund, revoke, release a hold, change a tier.

Each is one operation of the ledger's. Its way is the same for all: a form, a preview, a click, and
a page that says what was done.

    forms.py    fields, and what an operator typed
    orders.py   an operation with its arguments, as a form carries it
    kinds.py    the five actions: their fields, and the order that they make of them
    facts.py    what a preview and a result show
    desk.py     the pages, and what can go wrong between them
"""

from __future__ import annotations

from credit_mongo.studio.actions.desk import ACTION_PAGES

__all__ = ["ACTION_PAGES"]
