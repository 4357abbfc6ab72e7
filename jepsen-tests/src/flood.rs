//! Clients that write as fast as they can, into a namespace of their own: a fault like any other. What they
//! write is counted and not recorded, for no checker could search it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_client::{Client, ClientOptions, Error, WriteContext};
use kv_types::NodeId;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::scenario::{FLOODED, Mode};

/// The refusal of what is too much.
const OVERLOADED: &str = "OVERLOADED";
/// Deadline of one write.
const DEADLINE: Duration = Duration::from_secs(5);
/// A client that was refused waits so long, whatever hint it was given: it is no better a client than that.
const AFTER_REFUSAL: Duration = Duration::from_millis(50);
/// Latencies of refusals that one client keeps.
const KEPT_LATENCIES: usize = 10_000;
/// Writes to one key, one after the other, before the next is taken: rows are overwritten as well as new.
const WRITES_OF_A_KEY: u64 = 4;

/// The namespace that floods of a mode write into.
pub fn namespace(mode: Mode) -> String {
    let mode = match mode {
        Mode::Strong => "strong",
        Mode::Available => "available",
    };
    format!("{FLOODED}{mode}")
}

/// What a flood did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flooded {
    /// Writes that were acknowledged.
    pub applied: u64,
    /// Writes of unknown outcome.
    pub unknown: u64,
    /// Writes that were refused, by the name of the refusal.
    pub refused: BTreeMap<String, u64>,
    /// How long refusals took, microseconds.
    pub refused_us: Vec<u64>,
}

impl Flooded {
    /// Whether it was more than the store took: a part was applied, and another refused for that reason.
    pub fn overflowed(&self) -> bool {
        self.applied > 0 && self.refused.contains_key(OVERLOADED)
    }

    /// Figures for the proof.
    pub fn figures(&self) -> Value {
        let mut us = self.refused_us.clone();
        us.sort_unstable();
        let at = |part: usize| us.get(us.len().saturating_sub(1) * part / 100).copied();
        json!({
            "applied": self.applied, "unknown": self.unknown, "refused": self.refused,
            "refused_us_p50": at(50), "refused_us_p99": at(99),
        })
    }

    fn note(&mut self, outcome: Result<(), Error>, took: Duration) -> bool {
        match outcome {
            Ok(()) => self.applied += 1,
            Err(error) if error.is_unknown() => self.unknown += 1,
            Err(error) => {
                *self.refused.entry(error.reason().code_name().to_owned()).or_default() += 1;
                if self.refused_us.len() < KEPT_LATENCIES {
                    self.refused_us.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                }
                return true;
            }
        }
        false
    }

    fn add(&mut self, other: Self) {
        self.applied += other.applied;
        self.unknown += other.unknown;
        for (name, count) in other.refused {
            *self.refused.entry(name).or_default() += count;
        }
        self.refused_us.extend(other.refused_us);
    }
}

/// A flood that is under way. Dropping it ends it.
#[derive(Debug)]
pub struct Flood {
    clients: JoinSet<Flooded>,
    over: Arc<AtomicBool>,
}

impl Flood {
    /// Begins: so many clients at each node, which write values of so many bytes.
    pub fn begin(
        nodes: &[(NodeId, String)],
        clients: u32,
        bytes: u64,
        mode: Mode,
        dice: u64,
    ) -> Result<Self, Box<Error>> {
        let (mut tasks, over) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        let value = vec![b'f'; usize::try_from(bytes).unwrap_or(usize::MAX)];
        for (node, address) in nodes {
            for client in 0..clients {
                let options =
                    ClientOptions { attempts: 1, write_timeout: DEADLINE, ..ClientOptions::pinned(address) };
                let connected = Client::connect(options).map_err(Box::new)?;
                let (value, over) = (value.clone(), Arc::clone(&over));
                let prefix = format!("{dice:x}.{node}.{client}.");
                tasks.spawn(write(connected, mode, prefix, value, over));
            }
        }
        Ok(Self { clients: tasks, over })
    }

    /// Ends it when every write that was begun is over.
    pub async fn end(mut self) -> Flooded {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Flooded::default();
        while let Some(ended) = self.clients.join_next().await {
            all.add(ended.unwrap_or_default());
        }
        all
    }
}

async fn write(client: Client, mode: Mode, prefix: String, value: Vec<u8>, over: Arc<AtomicBool>) -> Flooded {
    let (strong, available) = (client.strong(namespace(mode)), client.available(namespace(mode)));
    let mut flooded = Flooded::default();
    for at in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        let outcome = match mode {
            Mode::Strong => {
                let key = format!("{prefix}{}", at / WRITES_OF_A_KEY);
                strong.put(key, value.clone()).await.map(|_| ())
            }
            // Each key once: what is written blindly stays beside what was there.
            Mode::Available => {
                let key = format!("{prefix}{at}");
                available.put(key, value.clone(), WriteContext::Blind).await.map(|_| ())
            }
        };
        if flooded.note(outcome, begun.elapsed()) {
            tokio::time::sleep(AFTER_REFUSAL).await;
        }
    }
    flooded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_that_the_store_takes_whole_or_not_at_all_shows_nothing() {
        let flooded = |applied, refused: u64| {
            let refused = (refused > 0).then(|| (OVERLOADED.to_owned(), refused)).into_iter().collect();
            Flooded { applied, refused, ..Flooded::default() }
        };
        assert!(flooded(5, 1).overflowed());
        assert!(!flooded(5, 0).overflowed() && !flooded(0, 5).overflowed());
        let mut sum = flooded(5, 1);
        sum.refused_us = vec![9, 1, 3];
        sum.add(flooded(1, 2));
        assert_eq!((sum.applied, sum.refused[OVERLOADED]), (6, 3));
        let other = Flooded { refused: [("NO_QUORUM".to_owned(), 3)].into(), ..flooded(5, 0) };
        assert!(!other.overflowed(), "another reason is no overflow");
        assert_eq!(sum.figures()["refused_us_p50"], 3);
        assert_eq!(Flooded::default().figures()["refused_us_p99"], Value::Null);
    }
}
