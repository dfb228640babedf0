"""One fleet-wide search: per device setting an ask/tell search, above them leases, storage and the wire."""
