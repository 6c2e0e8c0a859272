"""Other systems' names over Penstock, so that their programs run with only an import line changed."""
