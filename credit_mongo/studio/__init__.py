"""Studio: the ledger's data in a browser. It needs the extra ``studio``.

``credit-mongo studio`` opens it on this machine. `studio` returns the same pages as an application
to mount:

    app.mount("/credits", studio(ledger, authorize=operator_of))

Each module in ``pages/`` is a page; ``actions/`` has what operators can do. ``security.py`` lets
operators in and checks every form. ``gates.py`` says who is an operator, ``rights.py`` which
operator may change something.
"""

from credit_mongo.extras import missing

try:
    from credit_mongo.studio.application import studio
    from credit_mongo.studio.gates import Authorize, Operator
except ModuleNotFoundError as _error:
    raise missing(_error, "studio") from None

__all__ = ["Authorize", "Operator", "studio"]
