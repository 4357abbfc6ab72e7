//! `kvd`, the server process.
fn main() {}
