"""The verifiers inside other programs: `serve` and `remote` (HTTP), `trl`, `verl`. Nothing here is imported unless
asked for, and neither TRL nor verl is needed to import its adapter."""
