"""What people decide: reviews, blind answers, adoptions, and the rates that follow from them."""
