"""The persister: from the log into PostgreSQL. The only writer of messages, thread events and receipts.

``__main__`` puts it together; ``history`` writes a batch that ``shared.consumer`` brings; ``projections`` says which
rows an event becomes; ``feeds`` tells members and platform services afterwards, from the outbox.
"""
