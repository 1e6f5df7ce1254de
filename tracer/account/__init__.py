"""What a capture says: both sides joined, stages, and the ledger."""
