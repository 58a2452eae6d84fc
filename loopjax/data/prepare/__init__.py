"""`loopjax prepare`: text to token shards."""
