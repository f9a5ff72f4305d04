"""What the forms of preconditioners are worth: small fixed problems, equal budgets, one table."""
