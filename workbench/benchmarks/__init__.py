"""The budgets, measured: one module for each `workbench bench` command."""
