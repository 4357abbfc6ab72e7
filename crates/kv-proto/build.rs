//! Compiles the protocol files with protox, so that no build needs protoc.
use std::path::{Path, PathBuf};

/// What strangers may use, and a node tells about itself.
const PUBLIC: [&str; 3] = ["quorate/v1/kv.proto", "quorate/v1/session.proto", "quorate/admin/v1/admin.proto"];
/// What nodes say to each other.
const PRIVATE: &str = "quorate/peer/v1/peer.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let public = PUBLIC.map(|file| root.join(file));
    let all = [&public[..], &[root.join(PRIVATE)]].concat();
    for file in &all {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Of its own, and not a part of the other: then it has what it imports, and nothing else.
    let told = protox::compile(&public, [&root])?;
    std::fs::write(out.join("public.bin"), prost::Message::encode_to_vec(&told))?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_server(true)
        .build_client(true)
        .compile_fds(protox::compile(&all, [&root])?)?;
    Ok(())
}
