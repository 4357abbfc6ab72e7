//! The small state: a bounded map that every segment repeats in its head, so that it survives without any
//! tier.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

use crate::batch::Op;

/// Keys of the small state that belong to storage: `0`, a letter, and more.
pub(crate) mod small_key {
    use bytes::Bytes;

    const OWN: u8 = 0;

    fn of_group(kind: u8, group: u32) -> Bytes {
        let mut key = vec![OWN, kind];
        key.extend_from_slice(&group.to_be_bytes());
        Bytes::from(key)
    }

    /// The vote of a Raft group.
    pub(crate) fn vote(group: u32) -> Bytes {
        of_group(b'V', group)
    }

    /// The last purged log id of a Raft group.
    pub(crate) fn purged(group: u32) -> Bytes {
        of_group(b'P', group)
    }

    /// The committed hint of a Raft group.
    pub(crate) fn committed(group: u32) -> Bytes {
        of_group(b'C', group)
    }

    /// The group of a purge key.
    pub(crate) fn purged_group(key: &[u8]) -> Option<u32> {
        Some(u32::from_be_bytes(key.strip_prefix(&[OWN, b'P'])?.try_into().ok()?))
    }

    /// The group of a vote or purge key.
    pub(crate) fn any_group(key: &[u8]) -> Option<u32> {
        let group = key.strip_prefix(&[OWN, b'V']).or(key.strip_prefix(&[OWN, b'P']))?;
        Some(u32::from_be_bytes(group.try_into().ok()?))
    }

    /// Which tier belongs to this log, and up to where it was on disk.
    pub(crate) const TIER: &[u8] = &[OWN, b'T'];
    /// Set while the loss of a tier has not been made good.
    pub(crate) const TIER_LOST: &[u8] = &[OWN, b'L'];
    /// The first segment that must exist.
    pub(crate) const FIRST: &[u8] = &[OWN, b'F'];
    /// Records of the callers: which of several states counts.
    pub(crate) const RECORD: &[u8] = &[OWN, b'N'];
}

/// The small state, with an account of its size.
#[derive(Debug, Clone, Default)]
pub(crate) struct SmallState {
    rows: BTreeMap<Bytes, Bytes>,
    bytes: usize,
}

impl SmallState {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.rows.get(key)
    }

    /// Keys and values together.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn rows(&self) -> &BTreeMap<Bytes, Bytes> {
        &self.rows
    }

    /// Sets or removes a key. Copies: the small state outlives the batch or frame that the bytes are part of
    /// by far.
    pub(crate) fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        if let Some(old) = self.rows.remove(key) {
            let gone = key.len() + old.len();
            assert!(self.bytes >= gone, "the account of the small state: {} of {gone} bytes", self.bytes);
            self.bytes -= gone;
        }
        if let Some(value) = value {
            self.bytes += key.len() + value.len();
            self.rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        }
    }

    /// Applies the operations of a batch on the small state.
    pub(crate) fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            if let Op::Small(key, value) = op {
                self.set(key, value.as_deref());
            }
        }
    }

    /// What it would grow by with a batch, at most.
    pub(crate) fn growth(&self, ops: &[Op]) -> usize {
        let added = ops.iter().map(|op| match op {
            Op::Small(key, Some(value)) => {
                let old = self.rows.get(key).map_or(0, |old| key.len() + old.len());
                (key.len() + value.len()).saturating_sub(old)
            }
            _ => 0,
        });
        added.sum()
    }

    /// Rows under a prefix, in key order.
    pub(crate) fn scan(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let rows = self.rows.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        rows.take_while(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

impl FromIterator<(Bytes, Bytes)> for SmallState {
    fn from_iter<I: IntoIterator<Item = (Bytes, Bytes)>>(rows: I) -> Self {
        let rows: BTreeMap<Bytes, Bytes> = rows.into_iter().collect();
        let bytes = rows.iter().map(|(k, v)| k.len() + v.len()).sum();
        SmallState { rows, bytes }
    }
}
