"""Memory moved one-sidedly between processes and hosts, with deadlines, generations and notifications."""
