"""Language models trained with any optimizer of the toolkit: text in, measured model out."""
