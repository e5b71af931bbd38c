"""A finished model made ready for others: export to the formats that other programs read."""
