//! A counter in a strong namespace: read, add one, and write only if no one was faster.
//!
//! `kvctl ns create bank --mode strong`, then `cargo run -p kv-client --example counter -- 127.0.0.1:7101`
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use kv_client::{Client, ClientOptions, Error, Expect, Strong, Swap};

/// Adds one to a counter, and says what it is then.
///
/// A mismatch is an answer: another client was faster, and the loop reads again. An error that is *unknown*
/// ends it: the one may have been added, and only the caller knows whether adding it twice would do harm.
pub async fn increment(bank: &Strong, key: &str) -> Result<u64, Error> {
    loop {
        let found = bank.get(key).await?.value;
        let (expect, count) = match &found {
            Some(found) => (Expect::Revision(found.revision), number(&found.value)),
            None => (Expect::Absent, 0),
        };
        let next = count + 1;
        if let Swap::Swapped(_) = bank.compare_and_set(key, expect, next.to_string()).await?.value {
            return Ok(next);
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7101".into());
    let client = Client::connect(ClientOptions::new([endpoint]))?;
    let bank = client.strong("bank");
    for _ in 0..3 {
        println!("visits: {}", increment(&bank, "visits").await?);
    }
    Ok(())
}
