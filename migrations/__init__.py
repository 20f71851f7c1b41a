"""The tables of PostgreSQL and their history: alembic revisions of plain SQL, up and down.

``runner`` is the way in. One revision per file in ``versions/``, numbered; a released one is never edited.
"""
