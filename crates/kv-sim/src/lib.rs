//! Whole clusters in one process and nodes with faulty parts: the one tool that links the server.

// Under this cfg alone can turmoil seed tokio's own choices; without it two runs of a seed differ.
#[cfg(not(tokio_unstable))]
compile_error!(
    "kv-sim needs --cfg tokio_unstable, which .cargo/config.toml sets; RUSTFLAGS in the environment replaces that: add it there"
);

pub mod cli;
pub mod faulty;
pub mod sim;
