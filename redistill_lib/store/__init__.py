"""What is done with runs that are there: listed, chosen, compared, deleted. No torch, and nothing of notebooks."""
