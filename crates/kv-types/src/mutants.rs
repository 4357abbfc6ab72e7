//! Seeded bugs, to see whether the alarms ring. They exist only in a build with `--cfg quorate_mutants`
//! (`cargo xtask mutants`); one of them at most is on in a process, chosen by name at its start. At its site
//! each is a line or three under that cfg; an ordinary build has nothing of them.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Names the seeded bug of a process that has no flag for it, such as a test.
pub const VARIABLE: &str = "QUORATE_MUTANT";

/// No one has chosen yet: the environment decides at the first question.
const OPEN: usize = usize::MAX;
/// None is on.
const NONE: usize = usize::MAX - 1;

static CHOSEN: AtomicUsize = AtomicUsize::new(OPEN);

/// In which process the bug lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// In the node: `kvd-faulty --mutant`, or the simulation's nodes.
    Node,
    /// In the client library, hence in the program that drives the workload.
    Client,
    /// In the harness that injects the faults.
    Harness,
}

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $side:ident, $property:literal;)*) => {
        /// A seeded bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant { $($(#[$doc])* $variant,)* }

        impl Mutant {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Where it lives.
            pub fn side(self) -> Side {
                match self { $(Self::$variant => Side::$side,)* }
            }

            /// What the judge should find.
            pub fn property(self) -> &'static str {
                match self { $(Self::$variant => $property,)* }
            }
        }
    };
}

mutants! {
    /// kv-storage: of sixteen log frames one is synced, all are acknowledged. A power cut of a quorum loses
    /// what was acknowledged.
    AckBeforeFsync = "ack-before-fsync", Node, "acknowledged writes survive";
    /// kv-storage: a vote waits for the next write of the log instead of being synced. After a power cut the
    /// node votes twice in a term, and two leaders commit different things.
    VoteNotSynced = "vote-not-synced", Node, "a vote survives a crash";
    /// kv-storage: recovery overwrites single Raft entries and keeps what was behind them, though it was
    /// truncated.
    TailNotTruncated = "tail-not-truncated", Node, "a truncated tail stays away";
    /// kv-storage: a copy is closed without the last batch that was written during it, so a snapshot lacks
    /// what its mark says.
    TailBatchLost = "tail-batch-lost", Node, "a copy is what was there at its close";
    /// kv-storage: a journal's run is not synced before the tier takes the rows of its step. A power cut
    /// leaves a journal that is behind its tier.
    JournalUnsynced = "journal-unsynced", Node, "a journal is never behind its tier";
    /// kv-raft: an installed snapshot counts before its rows are durable. A power cut leaves the group
    /// without its state.
    SwitchedBeforeDurable = "switched-before-durable", Node, "an installed snapshot survives a crash";
    /// kv-storage: commits also take the room that is reserved for Raft's apply.
    ReserveIgnored = "reserve-ignored", Node, "apply finds room";
    /// kv-storage: keys reach the tier without being added to those that memory knows, so that they are
    /// denied once they have left the memtable.
    DrainPastTheFilter = "drain-past-the-filter", Node, "what is written is read";
    /// kv-raft: a leader answers reads without asking a quorum whether it still leads. A deposed one answers
    /// with the past.
    SkipReadIndex = "skip-read-index", Node, "linearizable";
    /// kv-raft: a read takes part in a round that has begun before it, so that what was acknowledged in
    /// between may be missing.
    ReadJoinsLate = "read-joins-late", Node, "linearizable";
    /// kv-raft: a write that is reported as not applied, since its turn did not come by the deadline, is
    /// proposed when its turn comes.
    WithdrawnProposed = "withdrawn-proposed", Node, "not applied means not applied";
    /// kv-raft: snapshots leave the sessions out. A replica that installs one applies resends again, or
    /// refuses what others apply.
    DedupLostInSnapshot = "dedup-lost-in-snapshot", Node, "linearizable";
    /// kv-raft: snapshots leave out some values, so a replica that installs one keeps less than the others.
    SnapshotDropsValues = "snapshot-drops-values", Node, "replicas equal in the end";
    /// kv-raft: a piece of a snapshot is taken without comparing its checksum, so a damaged file is only
    /// found when it is whole.
    ChunkChecksumIgnored = "chunk-checksum-ignored", Node, "replicas equal in the end";
    /// kv-raft: a known request is applied again when it is resent.
    ResendAppliedAgain = "resend-applied-again", Node, "linearizable";
    /// kv-raft: a session keeps the value that a comparison found instead of its own, so that memory follows
    /// the values.
    FoundValueKept = "found-value-kept", Node, "sessions are bounded in bytes";
    /// kv-raft: a session is forgotten before its issue time has come, so a client whose clock is ahead locks
    /// out the others.
    HorizonMovedByEviction = "horizon-moved-by-eviction", Node, "a client with the right time can open a session";
    /// kv-raft: compare-and-set also accepts the revision before the present one.
    StaleCas = "stale-cas", Node, "linearizable";
    /// kv-raft: a swap takes a revision without using it up, so the next write has the same.
    RevisionReused = "revision-reused", Node, "linearizable";
    /// kv-raft: a proposal that is not decided by its deadline is called refused, though it may be applied
    /// later.
    TimeoutAsRefusal = "timeout-as-refusal", Node, "linearizable";
    /// kv-raft: a write that comes behind the drop of its namespace is applied, so rows of a deleted
    /// namespace come back.
    PutAfterDrop = "put-after-drop", Node, "nothing is left of a deleted namespace";
    /// kv-raft: the deletion that was due is done although it was undone meanwhile, so a namespace that was
    /// taken back goes all the same.
    DueIgnoresUndelete = "due-ignores-undelete", Node, "a namespace that was taken back stays";
    /// kv-dynamo: hints are forgotten instead of delivered.
    ForgetHint = "forget-hint", Node, "acknowledged writes survive";
    /// kv-dynamo: hints do not outlive the process that holds them.
    HintsInMemoryOnly = "hints-in-memory-only", Node, "acknowledged writes survive";
    /// kv-types: a merge keeps the youngest of several concurrent values: last writer wins.
    DropSibling = "drop-sibling", Node, "no acknowledged write is lost without being superseded";
    /// kv-types: a write supersedes all that its replica has, whatever its context says.
    IgnoreContext = "ignore-context", Node, "no acknowledged write is lost without being superseded";
    /// kv-types: the record that arrives replaces the one that is there.
    MergeByArrival = "merge-by-arrival", Node, "no acknowledged write is lost without being superseded";
    /// kv-dynamo: a resent write supersedes what is observed now, though its first attempt may have been
    /// acknowledged and superseded since.
    ObservedResendSupersedes = "observed-resend-supersedes", Node, "no acknowledged write is lost without being superseded";
    /// kv-dynamo: after a restart dots are counted from one again, so new writes look like old ones.
    IncarnationReused = "incarnation-reused", Node, "no acknowledged write is lost without being superseded";
    /// kv-types: a record is stored without what it claims beyond the node clock, so what it superseded is
    /// taken for new when it arrives after that.
    StripAhead = "strip-ahead", Node, "what was deleted does not come back";
    /// kv-dynamo: who asks for missing writes is told of their keys without the records.
    LogWithoutRecord = "log-without-record", Node, "replicas equal in the end";
    /// kv-dynamo: a start reads the node clock without what the dot log got since it was written down.
    ClockWithoutLog = "clock-without-log", Node, "what was deleted does not come back";
    /// kv-dynamo: entries of the dot log go before the clock that has them is written down.
    LogTrimmedEarly = "log-trimmed-early", Node, "what was deleted does not come back";
    /// kv-dynamo: a read that met only fallbacks without knowledge says that the key is absent.
    AbsenceFromNoKnowledge = "absence-from-no-knowledge", Node, "no false absence";
    /// kv-dynamo: read repair hands over the context without the values that it covers.
    ReadRepairDrops = "read-repair-drops", Node, "no acknowledged write is lost without being superseded";
    /// kv-dynamo: a read that promises never to go back answers before enough primaries have what it found.
    ReadUnsettled = "read-unsettled", Node, "a read misses nothing that an earlier one showed";
    /// kv-dynamo: a replica that did not answer counts as one that did.
    SilenceAsAck = "silence-as-ack", Node, "no stale read where R + W > N";
    /// kv-dynamo: a node that lost its disk speaks for what it does not know.
    EmptyDiskSpeaks = "empty-disk-speaks", Node, "no false absence";
    /// kv-server: of a frame with several answers the first two change places.
    AnswersSwapped = "answers-swapped", Node, "an answer belongs to its request";
    /// kv-client: a request whose session stream ended is reported as not applied.
    StreamEndNotApplied = "stream-end-not-applied", Client, "not applied means not applied";
    /// kv-client: what a session stream had open at its end is never sent again.
    ResendLost = "resend-lost", Client, "what was open is sent again";
    /// kv-client: an operation whose fate is open is reported as not applied.
    UnknownAsNotApplied = "unknown-as-not-applied", Client, "linearizable";
    /// kv-lab: a cut is reported and not made.
    CutNotInstalled = "cut-not-installed", Harness, "every fault is proven installed";
}

impl Mutant {
    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }
}

/// Gives this process a bug; the empty name takes it away.
pub fn choose(name: &str) -> Result<(), String> {
    let number = match Mutant::ALL.iter().position(|mutant| mutant.name() == name) {
        Some(number) => number,
        None if name.is_empty() => NONE,
        None => {
            let names: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
            return Err(format!("no seeded bug is called `{name}`; there are {}", names.join(", ")));
        }
    };
    CHOSEN.store(number, Ordering::Relaxed);
    Ok(())
}

/// The bug of this process.
pub fn chosen() -> Option<Mutant> {
    let mut number = CHOSEN.load(Ordering::Relaxed);
    if number == OPEN {
        let wanted = std::env::var(VARIABLE).unwrap_or_default();
        number = Mutant::ALL.iter().position(|mutant| mutant.name() == wanted).unwrap_or(NONE);
        CHOSEN.store(number, Ordering::Relaxed);
    }
    Mutant::ALL.get(number).copied()
}

/// Whether this process has that bug.
pub fn on(mutant: Mutant) -> bool {
    chosen() == Some(mutant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_by_name() {
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::of(mutant.name()), Some(*mutant));
        }
        assert!(choose("no-such-bug").unwrap_err().contains("forget-hint"));
    }
}
