"""Which code a result was made from: the commit of the recipe's checkout, and what of it no commit holds."""
