//! A shopping cart in an available namespace: two people add to it without knowing of each other, and a third
//! merges what both wrote.
//!
//! `kvctl ns create cart --mode available`, then `cargo run -p kv-client --example cart -- 127.0.0.1:7101`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeSet;

use kv_client::{Available, Client, ClientOptions, Error, WriteContext};

/// Reads a cart, merges what concurrent writers left, and writes the union down. What was written meanwhile
/// stays beside it, for the next reader to merge.
pub async fn merge(cart: &Available, key: &str) -> Result<BTreeSet<String>, Error> {
    let read = cart.get(key).await?.value;
    let texts = read.values.iter().filter_map(|sibling| std::str::from_utf8(&sibling.value).ok());
    let things: BTreeSet<String> = texts.flat_map(|text| text.split(',')).map(str::to_owned).collect();
    let union = things.iter().cloned().collect::<Vec<_>>().join(",");
    // It supersedes exactly what was read, and nothing that came since.
    cart.put(key, union, WriteContext::Causal(read.context)).await?;
    Ok(things)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7101".into());
    let client = Client::connect(ClientOptions::new([endpoint]))?;
    let cart = client.available("cart");
    // Blind: as if neither had read what the other wrote.
    cart.put("user:42", "apple,pear", WriteContext::Blind).await?;
    cart.put("user:42", "apple,plum", WriteContext::Blind).await?;
    println!("siblings: {}", cart.get("user:42").await?.value.values.len());
    println!("merged:   {:?}", merge(&cart, "user:42").await?);
    Ok(())
}
