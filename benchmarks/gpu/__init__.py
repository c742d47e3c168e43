"""One command for a machine with a GPU that has few packages and no network."""
