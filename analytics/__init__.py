"""Analytics: from the domain events of stream ``EVENTS`` into aggregates. Their only writer, and of nothing else.

``__main__`` puts it together; ``rollups`` writes a batch that ``shared.consumer`` brings; ``aggregates`` is the pure
fold behind it: the same events give the same figures, however they are cut into batches.
"""
