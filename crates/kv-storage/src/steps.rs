//! What runs the steps: threads, or one caller that pumps.

use std::sync::Arc;

use crate::{checkpoint, drain, error::StorageError, limits, parts::Parts, reads};

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
    worked |= reads::learn_step(parts);
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
