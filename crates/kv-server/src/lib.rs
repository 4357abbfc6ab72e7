//! kvd, the server.
