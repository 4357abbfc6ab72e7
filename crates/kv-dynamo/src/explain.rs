//! What one node can find out about a key now: which copies there are, what each of them lacks, and which
//! reads and writes would find enough nodes. It changes nothing and repairs nothing; it is the viewpoint of
//! this node, and another one may see more or less.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use kv_proto::admin;
use kv_types::causal::{Dot, Sibling, State};
use kv_types::{Failure, Key, Namespace, NodeId, Reason};
use tokio::time::Instant;

use crate::limits;
use crate::node::Node;
use crate::read::Heard;

/// A node that may have a copy of the key, and what it said by the deadline.
struct Asked {
    node: NodeId,
    primary: bool,
    heard: Option<Heard>,
}

impl Asked {
    /// Whether a read may count it.
    fn counts(&self) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.primary || !self.primary)
    }

    /// Whether it can say what the key has.
    fn knows(&self) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.primary || heard.known)
    }
}

/// What all that answered know together: the values that a read of all of them shows.
fn merged(asked: &[Asked]) -> State {
    let mut merged = State::default();
    asked.iter().filter_map(|asked| asked.heard.as_ref()).for_each(|heard| merged.merge(&heard.state));
    merged.bury_twins(|_| Vec::new());
    merged
}

/// How many replicas answer a read now, from this viewpoint: `strict` without fallbacks. A write finds at
/// least as many: a primary that rebuilds what it keeps refuses reads, and takes writes.
fn most(asked: &[Asked], n: u8, strict: bool) -> u32 {
    let primaries = asked.iter().filter(|asked| asked.primary && asked.counts()).count();
    let fallbacks = asked.iter().filter(|asked| !asked.primary && asked.counts()).count();
    let all = if strict { primaries } else { primaries.saturating_add(fallbacks) };
    u32::try_from(all).unwrap_or(u32::MAX).min(n.into())
}

fn copy_of(asked: &Asked, merged: &State) -> admin::ExplainedCopy {
    let mut copy = admin::ExplainedCopy { node: asked.node.0, primary: asked.primary, ..Default::default() };
    let Some(heard) = &asked.heard else {
        copy.set_state(admin::CopyState::Silent);
        return copy;
    };
    let dots = |wanted: &dyn Fn(&Dot) -> bool| {
        let shown = merged.record.values();
        shown.into_iter().filter(|(dot, _)| wanted(dot)).map(|(dot, _)| dot.to_string()).collect()
    };
    copy.has = dots(&|dot| heard.state.record.siblings.contains_key(dot));
    if asked.knows() {
        copy.lacks = dots(&|dot| !heard.state.record.context.covers(*dot));
        let stale = |dot: &&Dot| !merged.record.siblings.contains_key(*dot);
        copy.superseded =
            u32::try_from(heard.state.record.siblings.keys().filter(stale).count()).unwrap_or(u32::MAX);
    }
    copy.set_state(match (asked.knows(), heard.state.record.siblings.is_empty()) {
        (false, _) => admin::CopyState::Nothing,
        (true, true) => admin::CopyState::Absent,
        (true, false) => admin::CopyState::Values,
    });
    copy
}

fn value_of((dot, sibling): (Dot, &Sibling)) -> admin::ExplainedValue {
    admin::ExplainedValue {
        dot: dot.to_string(),
        bytes: sibling.value.len() as u64,
        written_ms: sibling.stamp.wall_ms(),
        request: sibling.request.to_string(),
    }
}

impl Node {
    /// Asks those that may have a copy of the key, and says what came.
    ///
    /// Errors: `OVERLOADED` where this node coordinates as many requests, or holds as many bytes of answers,
    /// as it may.
    pub(crate) async fn explain(
        self: &Arc<Self>,
        namespace: &Namespace,
        key: Key,
        deadline: Instant,
    ) -> Result<admin::ExplainKeyResponse, Failure> {
        let view = self.view(namespace, key)?;
        let busy = |_| {
            Failure::new(Reason::Overloaded, "this node coordinates as many requests as it may")
                .retry_after_ms(50)
        };
        let _room = self.room.try_acquire().map_err(busy)?;
        let primaries = view.primaries.iter().map(|node| (*node, true));
        let fallbacks = view.fallbacks.iter().take(limits::EXPLAINED_FALLBACKS).map(|node| (*node, false));
        let until = deadline.min(Instant::now() + limits::EXPLAIN);
        let asks = primaries.chain(fallbacks).zip(0_usize..).map(|((node, primary), place)| {
            let ask = self.ask(&view, node, until);
            async move { (place, node, primary, tokio::time::timeout_at(until, ask).await.ok().flatten()) }
        });
        let mut asks: FuturesUnordered<_> = asks.collect();
        let mut asked = Vec::with_capacity(asks.len());
        // Each counts as soon as it is here, as those of a read do.
        while let Some((place, node, primary, heard)) = asks.next().await {
            // This node speaks for itself as it does to others.
            let speaks = node != self.me || !primary || self.knows(&view.place);
            let mut heard = heard.filter(|_| speaks);
            if let Some(heard) = &mut heard {
                heard.hold(self.hold_answer(&heard.state)?);
            }
            asked.push((place, Asked { node, primary, heard }));
        }
        asked.sort_by_key(|(place, _)| *place);
        let asked: Vec<Asked> = asked.into_iter().map(|(_, asked)| asked).collect();
        let merged = merged(&asked);
        Ok(admin::ExplainKeyResponse {
            viewpoint: self.me.0,
            n: view.replication.n.into(),
            r: view.replication.r.into(),
            w: view.replication.w.into(),
            sloppy: view.replication.sloppy,
            strict_replicas: most(&asked, view.replication.n, true),
            sloppy_replicas: most(&asked, view.replication.n, false),
            known: asked.iter().any(Asked::knows),
            copies: asked.iter().map(|asked| copy_of(asked, &merged)).collect(),
            values: merged.record.values().into_iter().map(value_of).collect(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::causal::{Context, Hlc};
    use kv_types::{ClientId, Incarnation, RequestId};

    use super::*;

    fn dot(counter: u64) -> Dot {
        Dot { incarnation: Incarnation(1), counter }
    }

    /// A copy with these values that knows of these writes.
    fn copy(node: u64, primary: bool, values: &[u64], knows: &[u64]) -> Asked {
        let mut state = State::default();
        state.record.context = knows.iter().chain(values).map(|counter| dot(*counter)).collect::<Context>();
        for counter in values {
            let request = RequestId { client_id: ClientId(1), seq: *counter };
            let sibling = Sibling { stamp: Hlc::at(*counter), request, value: Bytes::from_static(b"v") };
            state.record.siblings.insert(dot(*counter), sibling);
        }
        let known = !state.record.context.is_empty();
        Asked { node: NodeId(node), primary, heard: Some(Heard::of(NodeId(node), primary, known, state)) }
    }

    fn silent(node: u64) -> Asked {
        Asked { node: NodeId(node), primary: true, heard: None }
    }

    #[test]
    fn each_copy_is_compared_with_what_all_know() {
        // n1 has the second value; n2 the first, which that superseded; n3 is silent; n4 holds a third one.
        let asked = [
            copy(1, true, &[2], &[1]),
            copy(2, true, &[1], &[]),
            silent(3),
            copy(4, false, &[3], &[]),
            copy(5, false, &[], &[]),
        ];
        let merged = merged(&asked);
        let copies: Vec<_> = asked.iter().map(|asked| copy_of(asked, &merged)).collect();
        let states: Vec<_> = copies.iter().map(admin::ExplainedCopy::state).collect();
        use admin::CopyState::{Nothing, Silent, Values};
        assert_eq!(states, [Values, Values, Silent, Values, Nothing]);
        let (second, third) = (dot(2).to_string(), dot(3).to_string());
        assert_eq!((&copies[0].has, &copies[0].lacks), (&vec![second.clone()], &vec![third.clone()]));
        assert_eq!((copies[1].lacks.len(), copies[1].superseded), (2, 1));
        assert_eq!((&copies[3].has, &copies[3].lacks), (&vec![third], &vec![second]));
        assert!(copies[4].lacks.is_empty(), "a fallback that holds nothing lacks nothing");
        assert_eq!((most(&asked, 3, true), most(&asked, 3, false)), (2, 3));
    }

    #[test]
    fn a_key_that_is_absent_is_told_from_one_that_is_not_known() {
        let absent = [copy(1, true, &[], &[1]), silent(2)];
        let state = |asked: &[Asked], at: usize| copy_of(&asked[at], &merged(asked)).state();
        assert_eq!(state(&absent, 0), admin::CopyState::Absent);
        assert!(absent.iter().any(Asked::knows));
        let nothing = [silent(1), copy(4, false, &[], &[])];
        assert_eq!(state(&nothing, 1), admin::CopyState::Nothing);
        assert!(!nothing.iter().any(Asked::knows));
        // A fallback without knowledge is of use for a write, and makes a read none the wiser.
        assert_eq!((most(&nothing, 3, true), most(&nothing, 3, false)), (0, 1));
    }
}
