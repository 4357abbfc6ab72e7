//! Available namespaces: rings, coordinators, hints, repair.
