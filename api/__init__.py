"""The REST interface and the services behind it: the writer of threads, members and users."""
