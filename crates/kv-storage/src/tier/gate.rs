//! Tiers for tests whose calls wait on request, as those of a stalled disk or of a busy library do.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{Tier, TierChunk, TierError, TierMark, TierSource, TierWrites, Watched};
use crate::locks::lock;

/// A call of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TierCall {
    /// [`Tier::get`].
    Get,
    /// [`Tier::scan`].
    Scan,
    /// [`Tier::make_room`].
    MakeRoom,
    /// [`Tier::apply`].
    Apply,
    /// [`Tier::checkpoint`].
    Checkpoint,
    /// The last handle is dropped.
    Close,
}

/// Which calls a [`Gate`] holds up.
#[derive(Debug, Clone)]
pub struct Hold {
    call: TierCall,
    part: Option<Bytes>,
    most: usize,
    answered: bool,
}

impl Hold {
    /// Every such call from now on, before it does anything.
    pub fn every(call: TierCall) -> Hold {
        Hold { call, part: None, most: usize::MAX, answered: false }
    }

    /// Only those whose key contains this.
    #[must_use]
    pub fn of(self, part: &'static [u8]) -> Hold {
        Hold { part: Some(Bytes::from_static(part)), ..self }
    }

    /// Only the next `most` of them.
    #[must_use]
    pub fn at_most(self, most: usize) -> Hold {
        Hold { most, ..self }
    }

    /// Once they have their answer, which is old when they go on.
    #[must_use]
    pub fn answered(self) -> Hold {
        Hold { answered: true, ..self }
    }

    /// Takes one more call, if it is meant and there is a place left.
    fn takes(&mut self, call: TierCall, key: &[u8], answered: bool) -> bool {
        let contains = |part: &Bytes| key.windows(part.len().max(1)).any(|at| at == part);
        let meant = self.call == call && self.answered == answered && self.part.as_ref().is_none_or(contains);
        let takes = meant && self.most > 0;
        self.most -= usize::from(takes);
        takes
    }
}

#[derive(Debug, Default)]
struct State {
    /// By number; a call that waits goes on when its hold is gone.
    holds: BTreeMap<u64, Hold>,
    last: u64,
    waiting: usize,
    begun: BTreeMap<TierCall, usize>,
}

/// Holds calls of tiers up, and counts them. Clones are the same gate.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

impl Gate {
    /// Holds calls up, besides those that are held already.
    pub fn hold(&self, hold: Hold) {
        let mut state = lock(&self.0.0);
        state.last += 1;
        let number = state.last;
        state.holds.insert(number, hold);
    }

    /// All calls go on, and none is held up any more.
    pub fn release(&self) {
        lock(&self.0.0).holds.clear();
        self.0.1.notify_all();
    }

    /// How many calls wait.
    pub fn waiting(&self) -> usize {
        lock(&self.0.0).waiting
    }

    /// How many such calls began so far.
    pub fn begun(&self, call: TierCall) -> usize {
        lock(&self.0.0).begun.get(&call).copied().unwrap_or(0)
    }

    fn begin(&self, call: TierCall, key: &[u8]) {
        *lock(&self.0.0).begun.entry(call).or_default() += 1;
        self.pass(call, key, false);
    }

    fn pass(&self, call: TierCall, key: &[u8], answered: bool) {
        let (state, changed) = &*self.0;
        let mut state = lock(state);
        let held = state.holds.iter_mut().find_map(|(n, hold)| hold.takes(call, key, answered).then_some(*n));
        let Some(held) = held else { return };
        state.waiting += 1;
        while state.holds.contains_key(&held) {
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }
}

/// Tiers behind a gate.
#[derive(Debug)]
pub struct GatedTiers {
    tiers: Arc<dyn TierSource>,
    gate: Gate,
    bound: Option<Duration>,
}

impl GatedTiers {
    /// Puts a gate in front of tiers.
    pub fn new(tiers: Arc<dyn TierSource>, gate: &Gate) -> GatedTiers {
        GatedTiers { tiers, gate: gate.clone(), bound: None }
    }

    /// Gives up a write that waits for longer, as tiers on a disk do.
    #[must_use]
    pub fn within(self, bound: Duration) -> GatedTiers {
        GatedTiers { bound: Some(bound), ..self }
    }
}

impl TierSource for GatedTiers {
    fn open(&self, dir: &Path) -> Result<Arc<dyn Tier>, TierError> {
        let tier = Arc::new(GatedTier { tier: self.tiers.open(dir)?, gate: self.gate.clone() });
        match self.bound {
            Some(bound) => Ok(Arc::new(Watched::new(tier, bound)?)),
            None => Ok(tier),
        }
    }

    fn set_aside(&self, dir: &Path) -> Result<(), TierError> {
        self.tiers.set_aside(dir)
    }
}

#[derive(Debug)]
struct GatedTier {
    tier: Arc<dyn Tier>,
    gate: Gate,
}

impl Tier for GatedTier {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TierError> {
        self.gate.begin(TierCall::Get, key);
        let found = self.tier.get(key);
        self.gate.pass(TierCall::Get, key, true);
        found
    }

    fn scan(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<TierChunk, TierError> {
        self.gate.begin(TierCall::Scan, from);
        let chunk = self.tier.scan(from, to, limit_rows, limit_bytes);
        self.gate.pass(TierCall::Scan, from, true);
        chunk
    }

    fn keys(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        limit_rows: usize,
        limit_bytes: usize,
    ) -> Result<(Vec<Bytes>, bool), TierError> {
        self.gate.begin(TierCall::Scan, from);
        self.tier.keys(from, to, limit_rows, limit_bytes)
    }

    fn make_room(&self) -> Result<(), TierError> {
        self.gate.begin(TierCall::MakeRoom, &[]);
        self.tier.make_room()
    }

    fn apply(&self, writes: &TierWrites, mark: TierMark) -> Result<(), TierError> {
        self.gate.begin(TierCall::Apply, &[]);
        self.tier.apply(writes, mark)
    }

    fn mark(&self) -> Result<Option<TierMark>, TierError> {
        self.tier.mark()
    }

    fn checkpoint(&self) -> Result<(), TierError> {
        self.gate.begin(TierCall::Checkpoint, &[]);
        self.tier.checkpoint()
    }

    fn takes_writes(&self) -> bool {
        self.tier.takes_writes()
    }

    fn batch_bytes(&self) -> usize {
        self.tier.batch_bytes()
    }
}

impl Drop for GatedTier {
    fn drop(&mut self) {
        self.gate.begin(TierCall::Close, &[]);
    }
}
