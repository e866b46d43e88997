"""Pure judgement: numbers in, verdicts out, no I/O."""
