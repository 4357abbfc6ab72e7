//! What runs the steps: threads, or one caller that pumps.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    thread,
};

use tokio::time::Instant;

use crate::{checkpoint, drain, error::StorageError, limits, parts::Parts};

const LEARNER: &str = "kv-learn";

/// Runs a step while the engine runs, and waits where there is nothing to do.
fn run(parts: &Arc<Parts>, step: impl Fn(&Arc<Parts>) -> bool) {
    let wait = limits::IDLE_WAIT.min(parts.options.drain_interval);
    let mut seen = 0;
    while parts.life.check().is_ok() {
        parts.look_for_room();
        if !step(parts) {
            parts.life.idle(&mut seen, wait);
        }
    }
}

fn drain_step(parts: &Parts) -> bool {
    drain::is_due(parts) && drain::step(parts)
}

/// The next segment leaves the reserve alone: what is in the log already must find room in the tier.
fn prepare_step(parts: &Parts) -> bool {
    parts.log.prepare_step(&|bytes| parts.space.leaves_reserve(bytes))
}

/// One round of all background work on this thread; true if there was any.
pub(crate) fn pump(parts: &Arc<Parts>) -> bool {
    if parts.life.is_halted() {
        return false;
    }
    parts.look_for_room();
    let mut worked = parts.log.write_step();
    worked |= prepare_step(parts);
    worked |= drain_step(parts);
    worked |= checkpoint::step(parts);
    // One step each time, between which others have their turn.
    if learn_step(parts) {
        parts.life.wake_driver();
    }
    worked |= checkpoint::reclaim_step(parts);
    worked | checkpoint::retention_step(parts)
}

/// Starts the threads. A panic of one of them ends the engine.
pub(crate) fn start_threads(parts: &Arc<Parts>) -> Result<(), StorageError> {
    type Body = fn(&Arc<Parts>);
    let bodies: [(&str, Body); 4] = [
        ("kv-log", |p| p.log.run_writer()),
        ("kv-prepare", |p| run(p, |p| prepare_step(p))),
        ("kv-drain", |p| run(p, |p| drain_step(p))),
        ("kv-checkpoint", |p| {
            run(p, |p| checkpoint::step(p) | checkpoint::retention_step(p) | checkpoint::reclaim_step(p))
        }),
    ];
    parts.log.maker_starts();
    for (name, body) in bodies {
        let (own, panicked) = (parts.clone(), parts.clone());
        parts.life.spawn(
            name,
            move || body(&own),
            move |e| {
                panicked.log.fail(&e);
                panicked.log.refuse_rest();
            },
        )?;
    }
    Ok(())
}

/// Starts the thread that learns the keys which the tier had at the start. It does not keep the engine in
/// memory, and a stop does not wait for it: it reads, for as long as the disk takes.
pub(crate) fn start_learner(parts: &Arc<Parts>) -> Result<(), StorageError> {
    let parts = Arc::downgrade(parts);
    let body = move || {
        if catch_unwind(AssertUnwindSafe(|| learn(&parts))).is_err()
            && let Some(parts) = parts.upgrade()
        {
            parts.log.fail(&StorageError::ThreadPanicked { thread: LEARNER });
        }
    };
    let spawned = thread::Builder::new().name(LEARNER.into()).spawn(body);
    spawned.map(drop).map_err(StorageError::io("start the thread that learns keys"))
}

/// Learns them all, at half of the speed that the disk allows: what clients read comes first.
fn learn(parts: &Weak<Parts>) {
    while let Some(parts) = parts.upgrade() {
        let begun = Instant::now();
        if !learn_step(&parts) {
            return;
        }
        drop(parts);
        thread::sleep(begun.elapsed().min(limits::LEARN_REST));
    }
}

/// Some of those keys; false when there are no more.
fn learn_step(parts: &Parts) -> bool {
    if parts.life.check().is_err() {
        return false;
    }
    match parts.tier.learn_keys() {
        Ok(more) => more,
        // It is being stopped.
        Err(StorageError::Closed) => false,
        Err(e) => {
            parts.tier_failed(&e);
            false
        }
    }
}
