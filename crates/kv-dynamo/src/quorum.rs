//! All the quorum arithmetic, as values without clock, socket or randomness: which nodes are
//! asked, which stand in for others, when a write or a read is done, and when it is known to be impossible.
//! The drivers feed replies and time in and carry the actions out.
//!
//! A request names the primaries first, then as many fallbacks at most: 2N nodes. Every primary has a
//! patience; when it runs out, or the primary is known to be unreachable, a fallback stands in for it (sloppy
//! requests only), which has less. A node counts once. Time is a duration since the request began.

use std::collections::VecDeque;
use std::time::Duration;

use kv_types::NodeId;

/// What a request may use.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The node that coordinates.
    pub(crate) me: NodeId,
    /// The primaries in the order in which they are asked, each with whether it is worth asking now.
    pub(crate) primaries: Vec<(NodeId, bool)>,
    /// The fallbacks that are worth asking, in order; without `me`.
    pub(crate) fallbacks: Vec<NodeId>,
    /// Answers or acknowledgements needed.
    pub(crate) needed: usize,
    /// Whether only primaries count.
    pub(crate) strict: bool,
    /// How long a node may be silent before another stands in.
    pub(crate) patience: Duration,
}

impl Plan {
    fn i_am_primary(&self) -> bool {
        self.primaries.iter().any(|(node, _)| *node == self.me)
    }

    /// Refused before anything is sent: fewer nodes can be reached than are needed.
    fn check(&self, me_counts: bool) -> Result<(), NotMet> {
        let others = self.primaries.iter().filter(|(node, up)| *up && *node != self.me).count();
        let fallbacks = if self.strict { 0 } else { self.fallbacks.len() };
        let reachable = others + fallbacks + usize::from(me_counts);
        if reachable < self.needed { Err(NotMet { needed: self.needed, reached: reachable }) } else { Ok(()) }
    }
}

/// Too few nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotMet {
    /// Nodes that are needed.
    pub(crate) needed: usize,
    /// Nodes that can be reached, or were reached.
    pub(crate) reached: usize,
}

/// The result of one message to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Done and durable there, or answered.
    Ok,
    /// It will not happen: not sent, refused, or the stream broke.
    Failed,
}

/// One node that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The node.
    pub(crate) node: NodeId,
    /// The primary that it stands in for.
    pub(crate) stands_in_for: Option<NodeId>,
    /// Whether it answered.
    pub(crate) answered: bool,
    state: Wait,
}

impl Asked {
    /// A node that has answered, alone.
    pub(crate) fn answered(node: NodeId) -> Self {
        Self { node, stands_in_for: None, answered: true, state: Wait::Over }
    }

    /// Whether it can still answer in time.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.state, Wait::Until(_))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Asked; another stands in for it from then on.
    Until(Duration),
    /// Asked, and too late to wait for alone; its answer still counts.
    Overdue,
    Over,
}

/// When the patience with the first node ends.
fn end_of_patience(asked: &[Asked]) -> Option<Duration> {
    asked
        .iter()
        .filter_map(|asked| if let Wait::Until(until) = asked.state { Some(until) } else { None })
        .min()
}

/// The nodes whose patience has not ended.
fn within_patience(asked: &[Asked]) -> impl Iterator<Item = NodeId> + '_ {
    asked.iter().filter(|asked| matches!(asked.state, Wait::Until(_))).map(|asked| asked.node)
}

/// What the driver of a write does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteAction {
    /// Send the state to a primary, or to a fallback as a hint for a primary.
    Send {
        /// The receiver.
        to: NodeId,
        /// `Some`: it is stored as a hint for this node, and counts towards W.
        hint_for: Option<NodeId>,
    },
    /// Remember here what that primary still has to get.
    HintHere {
        /// The primary.
        target: NodeId,
    },
    /// W nodes acknowledged.
    Done,
    /// W nodes cannot acknowledge any more. What was sent may survive.
    Impossible,
}

#[derive(Debug)]
struct Slot {
    primary: NodeId,
    /// The primary, or a hint for it, is safe somewhere, or about to be remembered here.
    settled: bool,
}

/// The write after it is durable at its coordinator.
#[derive(Debug)]
pub(crate) struct WriteCoordinator {
    plan: Plan,
    slots: Vec<Slot>,
    asked: Vec<Asked>,
    fallbacks: VecDeque<NodeId>,
    answered: bool,
}

impl WriteCoordinator {
    /// Whether W is within reach at all; to be asked before anything is written anywhere. A fallback
    /// coordinates only sloppy writes.
    pub(crate) fn new(plan: Plan) -> Result<Self, NotMet> {
        plan.check(plan.i_am_primary() || !plan.strict)?;
        let slots =
            plan.primaries.iter().map(|(primary, _)| Slot { primary: *primary, settled: false }).collect();
        let fallbacks = if plan.strict { VecDeque::new() } else { plan.fallbacks.iter().copied().collect() };
        Ok(Self { slots, asked: Vec::new(), fallbacks, answered: false, plan })
    }

    /// The coordinator has the write fsynced: as a record if it is a primary, else as hints for every
    /// primary.
    pub(crate) fn begin(&mut self, now: Duration) -> Vec<WriteAction> {
        let mut actions = Vec::new();
        let primary = self.plan.i_am_primary();
        let stands_in_for = self.plan.primaries.first().map(|(node, _)| *node).filter(|_| !primary);
        self.asked.push(Asked { node: self.plan.me, stands_in_for, answered: true, state: Wait::Over });
        for slot in &mut self.slots {
            slot.settled = !primary || slot.primary == self.plan.me;
        }
        for (node, up) in self.plan.primaries.clone() {
            if up && node != self.plan.me {
                self.send(node, None, now, &mut actions);
            }
        }
        for (node, up) in self.plan.primaries.clone() {
            if !up && node != self.plan.me {
                self.stand_in(node, now, &mut actions);
            }
        }
        self.conclude(&mut actions);
        actions
    }

    /// A node answered.
    pub(crate) fn on_reply(&mut self, node: NodeId, reply: Reply, now: Duration) -> Vec<WriteAction> {
        let mut actions = Vec::new();
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.node == node && !asked.answered) else {
            return actions;
        };
        let target = asked.stands_in_for.unwrap_or(node);
        let waited_for = matches!(asked.state, Wait::Until(_));
        asked.state = Wait::Over;
        asked.answered = reply == Reply::Ok;
        match reply {
            Reply::Ok => self.settle(target),
            Reply::Failed if waited_for => self.stand_in(target, now, &mut actions),
            Reply::Failed => {}
        }
        self.conclude(&mut actions);
        actions
    }

    /// A node is suspected: the request no longer waits for it, though its answer would still count.
    pub(crate) fn on_suspect(&mut self, node: NodeId, now: Duration) -> Vec<WriteAction> {
        let mut actions = Vec::new();
        self.overdue(now, &mut actions, |asked| asked.node == node);
        actions
    }

    /// Time passed.
    pub(crate) fn on_tick(&mut self, now: Duration) -> Vec<WriteAction> {
        let mut actions = Vec::new();
        self.overdue(now, &mut actions, |asked| matches!(asked.state, Wait::Until(until) if until <= now));
        actions
    }

    /// No further answer counts: every primary that is not settled gets a hint here.
    pub(crate) fn on_deadline(&mut self) -> Vec<WriteAction> {
        let mut actions = Vec::new();
        for asked in &mut self.asked {
            asked.state = Wait::Over;
        }
        self.fallbacks.clear();
        for slot in &mut self.slots {
            if !std::mem::replace(&mut slot.settled, true) {
                actions.push(WriteAction::HintHere { target: slot.primary });
            }
        }
        self.conclude(&mut actions);
        actions
    }

    /// When [`Self::on_tick`] has something to do.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        end_of_patience(&self.asked)
    }

    /// The nodes that the request waits for.
    pub(crate) fn waiting_for(&self) -> impl Iterator<Item = NodeId> + '_ {
        within_patience(&self.asked)
    }

    /// Whether nothing is left to wait for.
    pub(crate) fn is_settled(&self) -> bool {
        self.answered
            && (self.slots.iter().all(|slot| slot.settled)
                || self.asked.iter().all(|asked| matches!(asked.state, Wait::Over)))
    }

    /// All nodes that were asked, in that order; the coordinator first.
    pub(crate) fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// Acknowledgements that count.
    pub(crate) fn acknowledged(&self) -> usize {
        self.asked.iter().filter(|asked| asked.answered && self.counts(asked)).count()
    }

    fn counts(&self, asked: &Asked) -> bool {
        !self.plan.strict || asked.stands_in_for.is_none()
    }

    fn send(&mut self, to: NodeId, hint_for: Option<NodeId>, now: Duration, actions: &mut Vec<WriteAction>) {
        let state = Wait::Until(now + self.patience(hint_for.is_some()));
        self.asked.push(Asked { node: to, stands_in_for: hint_for, answered: false, state });
        actions.push(WriteAction::Send { to, hint_for });
    }

    /// How long one may be silent. After a cut that no node has noticed yet one stand-in after the other may
    /// be on its other side: each further one is given half as long, so that three are tried in the time of
    /// two patiences, which is what an entry node waits for who coordinates for it.
    fn patience(&self, stands_in: bool) -> Duration {
        let before =
            self.asked.iter().filter(|asked| asked.stands_in_for.is_some() && asked.node != self.plan.me);
        let halvings = if stands_in { before.count() + 1 } else { 0 };
        self.plan.patience / (1 << halvings.min(3))
    }

    fn settle(&mut self, target: NodeId) {
        self.slots.iter_mut().filter(|slot| slot.primary == target).for_each(|slot| slot.settled = true);
    }

    fn overdue(&mut self, now: Duration, actions: &mut Vec<WriteAction>, late: impl Fn(&Asked) -> bool) {
        let mut targets = Vec::new();
        for asked in &mut self.asked {
            if matches!(asked.state, Wait::Until(_)) && late(asked) {
                asked.state = Wait::Overdue;
                targets.push(asked.stands_in_for.unwrap_or(asked.node));
            }
        }
        for target in targets {
            self.stand_in(target, now, actions);
        }
    }

    /// The target did not take it itself (or its stand-in did not). While W is not met another fallback
    /// stands in; after that, or without one, the coordinator remembers.
    fn stand_in(&mut self, target: NodeId, now: Duration, actions: &mut Vec<WriteAction>) {
        let wanted = self.acknowledged() + self.promising() < self.plan.needed;
        let fallback = if wanted { self.fallbacks.pop_front() } else { None };
        match fallback {
            Some(fallback) => self.send(fallback, Some(target), now, actions),
            None => {
                if self.slots.iter().any(|slot| slot.primary == target && !slot.settled) {
                    self.settle(target);
                    actions.push(WriteAction::HintHere { target });
                }
            }
        }
    }

    /// Nodes within their patience whose acknowledgement would count.
    fn promising(&self) -> usize {
        let waits = |asked: &&Asked| matches!(asked.state, Wait::Until(_)) && self.counts(asked);
        self.asked.iter().filter(waits).count()
    }

    fn conclude(&mut self, actions: &mut Vec<WriteAction>) {
        if self.answered {
            return;
        }
        let done = self.acknowledged();
        let open = self
            .asked
            .iter()
            .filter(|asked| !matches!(asked.state, Wait::Over) && self.counts(asked))
            .count();
        if done >= self.plan.needed {
            self.answered = true;
            actions.push(WriteAction::Done);
        } else if done + open + self.fallbacks.len() < self.plan.needed {
            self.answered = true;
            actions.push(WriteAction::Impossible);
        }
    }
}

/// What the driver of a read does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadAction {
    /// Ask this node.
    Ask {
        /// The node to ask.
        node: NodeId,
    },
    /// R nodes answered.
    Done,
    /// R nodes cannot answer any more.
    Impossible,
}

/// A read: R nodes are asked, primaries first; when one is silent the next is asked too.
#[derive(Debug)]
pub(crate) struct ReadCoordinator {
    plan: Plan,
    asked: Vec<Asked>,
    candidates: VecDeque<(NodeId, Option<NodeId>)>,
    answered: bool,
}

impl ReadCoordinator {
    /// `me_counts`: this node is itself a primary in good standing, or a fallback. Without it the coordinator
    /// only asks.
    pub(crate) fn new(plan: Plan, me_counts: bool) -> Result<Self, NotMet> {
        plan.check(me_counts && (plan.i_am_primary() || !plan.strict))?;
        let usable = |node: NodeId, up: bool| if node == plan.me { me_counts } else { up };
        let mut candidates: VecDeque<_> = plan
            .primaries
            .iter()
            .filter(|(node, up)| usable(*node, *up))
            .map(|(node, _)| (*node, None))
            .collect();
        if let Some(local) = candidates.iter().position(|(node, _)| *node == plan.me) {
            candidates.rotate_left(local);
        }
        if !plan.strict {
            let absent =
                plan.primaries.iter().filter(|(node, up)| !usable(*node, *up)).map(|(node, _)| *node);
            let replaced = absent.chain(plan.primaries.iter().map(|(node, _)| *node));
            let me = Some(plan.me).filter(|_| me_counts && !plan.i_am_primary());
            let fallbacks = me.into_iter().chain(plan.fallbacks.iter().copied());
            candidates.extend(fallbacks.zip(replaced).map(|(node, target)| (node, Some(target))));
        }
        Ok(Self { plan, asked: Vec::new(), candidates, answered: false })
    }

    /// Asks the first R.
    pub(crate) fn begin(&mut self, now: Duration) -> Vec<ReadAction> {
        let mut actions = Vec::new();
        for _ in 0..self.plan.needed {
            self.ask_next(now, &mut actions);
        }
        self.conclude(&mut actions);
        actions
    }

    /// A node answered.
    pub(crate) fn on_reply(&mut self, node: NodeId, reply: Reply, now: Duration) -> Vec<ReadAction> {
        let mut actions = Vec::new();
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.node == node && !asked.answered) else {
            return actions;
        };
        let waited_for = matches!(asked.state, Wait::Until(_));
        asked.state = Wait::Over;
        asked.answered = reply == Reply::Ok;
        if reply == Reply::Failed && waited_for {
            self.ask_next(now, &mut actions);
        }
        self.conclude(&mut actions);
        actions
    }

    /// A node is suspected.
    pub(crate) fn on_suspect(&mut self, node: NodeId, now: Duration) -> Vec<ReadAction> {
        self.overdue(now, |asked| asked.node == node)
    }

    /// Time passed.
    pub(crate) fn on_tick(&mut self, now: Duration) -> Vec<ReadAction> {
        self.overdue(now, |asked| matches!(asked.state, Wait::Until(until) if until <= now))
    }

    /// When [`Self::on_tick`] has something to do.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        end_of_patience(&self.asked)
    }

    /// The nodes that the request waits for.
    pub(crate) fn waiting_for(&self) -> impl Iterator<Item = NodeId> + '_ {
        within_patience(&self.asked)
    }

    /// All nodes that were asked, in that order.
    pub(crate) fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// Nodes that answered.
    pub(crate) fn answers(&self) -> usize {
        self.asked.iter().filter(|asked| asked.answered).count()
    }

    fn overdue(&mut self, now: Duration, late: impl Fn(&Asked) -> bool) -> Vec<ReadAction> {
        let mut actions = Vec::new();
        let mut count = 0;
        for asked in &mut self.asked {
            if matches!(asked.state, Wait::Until(_)) && late(asked) {
                asked.state = Wait::Overdue;
                count += 1;
            }
        }
        for _ in 0..count {
            self.ask_next(now, &mut actions);
        }
        actions
    }

    fn ask_next(&mut self, now: Duration, actions: &mut Vec<ReadAction>) {
        if self.answered {
            return;
        }
        if let Some((node, stands_in_for)) = self.candidates.pop_front() {
            let state = Wait::Until(now + self.plan.patience);
            self.asked.push(Asked { node, stands_in_for, answered: false, state });
            actions.push(ReadAction::Ask { node });
        }
    }

    fn conclude(&mut self, actions: &mut Vec<ReadAction>) {
        if self.answered {
            return;
        }
        let open = self.asked.iter().filter(|asked| !matches!(asked.state, Wait::Over)).count();
        if self.answers() >= self.plan.needed {
            self.answered = true;
            actions.push(ReadAction::Done);
        } else if self.answers() + open + self.candidates.len() < self.plan.needed {
            self.answered = true;
            actions.push(ReadAction::Impossible);
        }
    }
}

#[cfg(test)]
#[path = "quorum_tests.rs"]
mod tests;
