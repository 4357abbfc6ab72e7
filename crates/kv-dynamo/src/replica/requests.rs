//! The requests that a ring partition took, in memory: so a resend is told from a new write, and twins of one
//! request from different writes. The dot log has them on the disk; they are read from it at the start, and
//! go with its entries.

use std::collections::BTreeMap;

use kv_types::causal::Dot;
use kv_types::{ClientId, RequestId};

use crate::layout::Taken;

/// A request, as small as it can be: there may be as many as a dot log has entries.
#[derive(Debug, Clone)]
struct Known {
    issued_at_ms: u64,
    token: u64,
    /// The last entry of the log that names the request.
    entry: u64,
    body: u32,
    dot: Option<Dot>,
    /// Further dots. Almost no request has any.
    #[allow(clippy::box_collection, reason = "8 bytes instead of 24 in each")]
    twins: Option<Box<Vec<Dot>>>,
}

impl Known {
    fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.dot.into_iter().chain(self.twins.iter().flat_map(|twins| twins.iter().copied()))
    }

    fn taken(&self) -> Taken {
        let (issued_at_ms, body, token) = (self.issued_at_ms, self.body, self.token);
        Taken { issued_at_ms, body, token, dots: self.dots().collect() }
    }

    fn add(&mut self, dot: Dot) {
        if self.dots().any(|known| known == dot) {
            return;
        }
        match self.dot {
            None => self.dot = Some(dot),
            Some(_) => self.twins.get_or_insert_default().push(dot),
        }
    }
}

/// The requests of a ring partition by their ids.
#[derive(Debug, Default)]
pub(super) struct Requests {
    known: BTreeMap<RequestId, Known>,
}

impl Requests {
    /// What is known of a request.
    pub(super) fn get(&self, request: RequestId) -> Option<Taken> {
        self.known.get(&request).map(Known::taken)
    }

    /// The dots of a request that are known to be of the key with that token: usually one. A client that uses
    /// a request id again for another key breaks its promise, and must not lose what is there.
    pub(super) fn dots_of(&self, request: RequestId, token: u64) -> Vec<Dot> {
        let known = self.known.get(&request).filter(|known| known.token == token);
        known.map(|known| known.dots().collect()).unwrap_or_default()
    }

    /// What an entry of the log says of a request. Of one that was used for two keys the first stays.
    pub(super) fn add(&mut self, request: RequestId, taken: &Taken, entry: u64) {
        let Taken { issued_at_ms, body, token, .. } = *taken;
        let first = || Known { issued_at_ms, token, entry, body, dot: None, twins: None };
        let known = self.known.entry(request).or_insert_with(first);
        if known.token == token {
            known.entry = known.entry.max(entry);
            taken.dots.iter().for_each(|dot| known.add(*dot));
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.known.len() as u64
    }

    /// Some of them in the order of their ids, from behind one on.
    pub(super) fn behind(&self, after: Option<RequestId>) -> impl Iterator<Item = (RequestId, Taken)> + '_ {
        let from = after.map_or(FIRST, |RequestId { client_id, seq }| match seq.checked_add(1) {
            Some(seq) => RequestId { client_id, seq },
            None => RequestId { client_id: ClientId(client_id.0.saturating_add(1)), seq: 0 },
        });
        self.known.range(from..).map(|(request, known)| (*request, known.taken()))
    }

    /// The first entry of the log that is needed for a request that was issued then or later.
    pub(super) fn needed_since(&self, issued_at_ms: u64) -> Option<u64> {
        let young = self.known.values().filter(|known| known.issued_at_ms >= issued_at_ms);
        young.map(|known| known.entry).min()
    }

    /// When the last of those was issued that go with the entries up to that one.
    pub(super) fn last_issued(&self, to: u64) -> Option<u64> {
        let going = self.known.values().filter(|known| known.entry <= to);
        going.map(|known| known.issued_at_ms).max()
    }

    /// Forgets those whose entries are gone up to that one.
    pub(super) fn forget(&mut self, to: u64) {
        self.known.retain(|_, known| known.entry > to);
    }
}

const FIRST: RequestId = RequestId { client_id: ClientId(0), seq: 0 };

#[cfg(test)]
mod tests {
    use kv_types::Incarnation;

    use super::*;

    fn request(seq: u64) -> RequestId {
        RequestId { client_id: ClientId(1), seq }
    }

    fn dot(counter: u64) -> Dot {
        Dot { incarnation: Incarnation(1), counter }
    }

    fn taken(issued_at_ms: u64, token: u64, counter: u64) -> Taken {
        Taken { issued_at_ms, body: 3, token, dots: vec![dot(counter)] }
    }

    #[test]
    fn twins_are_known_and_another_key_changes_nothing() {
        let mut requests = Requests::default();
        assert_eq!(requests.get(request(1)), None);
        requests.add(request(1), &taken(10, 7, 1), 1);
        requests.add(request(1), &taken(10, 7, 1), 2);
        assert_eq!(requests.get(request(1)), Some(taken(10, 7, 1)));
        for counter in [4, 5, 4] {
            requests.add(request(1), &taken(10, 7, counter), 3);
        }
        requests.add(request(1), &taken(10, 8, 9), 4);
        assert_eq!(requests.dots_of(request(1), 7), [dot(1), dot(4), dot(5)]);
        assert!(requests.dots_of(request(1), 8).is_empty() && requests.dots_of(request(2), 7).is_empty());
        assert_eq!(requests.len(), 1);
        // One that is known before its writes are.
        requests.add(request(2), &Taken { dots: Vec::new(), ..taken(10, 7, 0) }, 5);
        assert_eq!(requests.get(request(2)).unwrap().dots, []);
        requests.add(request(2), &taken(10, 7, 6), 6);
        assert_eq!(requests.dots_of(request(2), 7), [dot(6)]);
    }

    #[test]
    fn they_go_with_their_last_entries() {
        let mut requests = Requests::default();
        for n in 1..=10 {
            requests.add(request(n), &taken(100 + n, 7, n), n);
        }
        requests.add(request(2), &taken(102, 7, 20), 20);
        assert_eq!((requests.needed_since(0), requests.needed_since(105)), (Some(1), Some(5)));
        assert_eq!(requests.needed_since(102), Some(3), "the second one is named again at the end");
        assert_eq!(requests.needed_since(111), None);
        assert_eq!((requests.last_issued(4), requests.last_issued(0)), (Some(104), None));
        requests.forget(4);
        let left: Vec<u64> = requests.behind(None).map(|(request, _)| request.seq).collect();
        assert_eq!(left, [2, 5, 6, 7, 8, 9, 10]);
        let behind: Vec<u64> = requests.behind(Some(request(8))).map(|(request, _)| request.seq).collect();
        assert_eq!(behind, [9, 10]);
        assert_eq!(requests.behind(Some(request(u64::MAX))).count(), 0);
    }

    #[test]
    fn one_takes_little_memory() {
        assert!(size_of::<(RequestId, Known)>() <= 96, "{}", size_of::<(RequestId, Known)>());
    }
}
