"""From evidence to the verdict: checking of claims, the policy, and the assembly of the report's fields."""
