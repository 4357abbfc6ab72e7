//! Local clusters of real processes whose network can be cut.
