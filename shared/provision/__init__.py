"""Provisioning: the only code that makes or changes streams, consumers and buckets. Services verify, and only read.

``provision`` may run any number of times: it makes what is missing, updates what may be updated, and refuses the
rest with a sentence. ``verify`` is what every service does at start. Both ask the running servers whether an
acknowledgement means "stored and flushed".

Generations. Each life of a message stream starts at ``generation << 40``, so positions only grow, whatever happens to
the store (architecture, section 3). The number is kept in PostgreSQL (``stream_generations``). A stream that ends below
what the persister has stored, or is gone while its positions are known, was lost or restored from an old copy: it is
refused, because messages would be given positions that others had before. A new generation is an operator's decision:
nothing here deletes a stream (its messages may not be in PostgreSQL yet). Delete it, or its store, by hand, then run
``lilith provision --new-generation MSG_0``.
"""

from shared.provision.errors import ProvisionError
from shared.provision.provisioning import Report, provision
from shared.provision.server import check_servers
from shared.provision.verifying import verify

__all__ = ["ProvisionError", "Report", "check_servers", "provision", "verify"]
