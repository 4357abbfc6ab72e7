//! Durable ordered tables and the shared log.
