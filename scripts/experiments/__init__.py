"""The papers' experiments: problems, the methods that race on them, and what counts as success."""
