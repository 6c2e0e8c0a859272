"""Contract suites and fault injectors that users may use as well; nothing here is imported by the rest."""
