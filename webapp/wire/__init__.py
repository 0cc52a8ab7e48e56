"""What several dialects of clients share: bodies of training passes, and polls that wait."""
