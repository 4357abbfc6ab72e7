//! Catalogue and strong namespaces on Raft groups.
