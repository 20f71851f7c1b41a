"""All SQL of the api, by concept. Every constant is one statement, PREPAREd by a test.

Lists and objects are built as JSON text by PostgreSQL: decoding fifty rows into Python costs more than the whole web
framework (measured: 147 of 262 µs per request). What depends on the asking user is decided in the same statement, so
nobody can forget to ask whether they are a member.
"""
