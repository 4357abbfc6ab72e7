//! How large the log is and what was written to it: figures that the writer leaves for others to read without
//! its lock.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kv_types::{Latency, LatencySummary};

#[derive(Debug)]
pub(crate) struct Progress {
    segment_bytes: u64,
    closed_segments: AtomicU64,
    active_bytes: AtomicU64,
    writes: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    /// Of a frame, its sync included.
    write: Latency,
}

impl Progress {
    pub(crate) fn new(segment_bytes: usize) -> Progress {
        Progress {
            segment_bytes: segment_bytes as u64,
            closed_segments: AtomicU64::new(0),
            active_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            write: Latency::default(),
        }
    }

    pub(crate) fn set_segments(&self, all: usize) {
        self.closed_segments.store((all as u64).saturating_sub(1), Ordering::Relaxed);
    }

    pub(crate) fn set_active(&self, bytes: u64) {
        self.active_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn wrote(&self, records: usize, bytes: usize, took: Duration) {
        self.write.record(took);
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Size of the log, closed segments counted whole.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.closed_segments.load(Ordering::Relaxed) * self.segment_bytes + self.active_bytes()
    }

    pub(crate) fn segments(&self) -> u64 {
        self.closed_segments.load(Ordering::Relaxed) + 1
    }

    /// Bytes of the segment being written.
    pub(crate) fn active_bytes(&self) -> u64 {
        self.active_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    pub(crate) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// How long it took to write and sync a frame.
    pub(crate) fn write_latency(&self) -> LatencySummary {
        self.write.summary()
    }

    /// Bytes written since the start.
    pub(crate) fn bytes_written(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
