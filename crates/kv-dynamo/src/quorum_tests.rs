//! Every order of events for small clusters, and random ones for larger: the arithmetic neither answers too
//! early nor hangs, and forgets no node.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_millis(120);

fn node(id: u64) -> NodeId {
    NodeId(id)
}

/// N primaries from 1, fallbacks from 11; `up` says who is worth asking.
fn plan(n: u64, me: u64, needed: usize, strict: bool, up: impl Fn(u64) -> bool) -> Plan {
    Plan {
        me: node(me),
        primaries: (1..=n).map(|id| (node(id), up(id))).collect(),
        fallbacks: (11..=10 + n).filter(|id| *id != me && up(*id)).map(node).collect(),
        needed,
        strict,
        patience: PATIENCE,
    }
}

/// What happens to one node that was asked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Acks,
    AcksLate,
    Fails,
    Silent,
    Suspected,
}

#[derive(Debug, Default)]
struct Outcome {
    done: bool,
    impossible: bool,
    acked: BTreeSet<NodeId>,
    hinted_at: BTreeSet<(NodeId, NodeId)>,
    hinted_here: BTreeSet<NodeId>,
    asked: usize,
}

/// Runs a write in which every node has a fate, until its deadline.
fn write(plan: Plan, fate: impl Fn(NodeId) -> Fate) -> Result<Outcome, NotMet> {
    let needed = plan.needed;
    let strict = plan.strict;
    let (me, primaries): (NodeId, Vec<NodeId>) = (plan.me, plan.primaries.iter().map(|(p, _)| *p).collect());
    let mut quorum = WriteCoordinator::new(plan)?;
    let mut outcome = Outcome { acked: [me].into_iter().collect(), ..Outcome::default() };
    let mut now = Duration::ZERO;
    let mut actions: VecDeque<WriteAction> = quorum.begin(now).into();
    let mut late = Vec::new();
    loop {
        while let Some(action) = actions.pop_front() {
            match action {
                WriteAction::Send { to, hint_for } => {
                    outcome.asked += 1;
                    assert_ne!(to, me, "a node does not send to itself");
                    assert!(hint_for.is_none() || !primaries.contains(&to));
                    match fate(to) {
                        Fate::Acks => {
                            outcome.acked.insert(to);
                            hint_for.map(|target| outcome.hinted_at.insert((to, target)));
                            actions.extend(quorum.on_reply(to, Reply::Ok, now));
                        }
                        Fate::AcksLate => late.push((to, hint_for)),
                        Fate::Fails => actions.extend(quorum.on_reply(to, Reply::Failed, now)),
                        Fate::Silent => {}
                        Fate::Suspected => actions.extend(quorum.on_suspect(to, now)),
                    }
                }
                WriteAction::HintHere { target } => {
                    assert!(outcome.hinted_here.insert(target), "one hint is enough")
                }
                WriteAction::Done => {
                    assert!(!outcome.done && !outcome.impossible);
                    let counted = outcome.acked.iter().filter(|a| !strict || primaries.contains(a)).count();
                    assert!(counted >= needed, "answered too early: {outcome:?}");
                    outcome.done = true;
                }
                WriteAction::Impossible => {
                    assert!(!outcome.done && !outcome.impossible);
                    outcome.impossible = true;
                }
            }
        }
        if let Some(tick) = quorum.next_tick() {
            assert!(tick > now);
            now = tick;
            actions.extend(quorum.on_tick(now));
            assert!(quorum.next_tick().is_none_or(|next| next > now));
        } else if let Some((to, hint_for)) = late.pop() {
            outcome.acked.insert(to);
            hint_for.map(|target| outcome.hinted_at.insert((to, target)));
            actions.extend(quorum.on_reply(to, Reply::Ok, now));
        } else {
            break;
        }
    }
    actions.extend(quorum.on_deadline());
    for action in actions {
        match action {
            WriteAction::HintHere { target } => assert!(outcome.hinted_here.insert(target)),
            WriteAction::Done => panic!("nothing was heard at the deadline"),
            WriteAction::Impossible => outcome.impossible = true,
            WriteAction::Send { .. } => panic!("nothing is sent after the deadline"),
        }
    }
    assert!(quorum.is_settled());
    assert!(outcome.done ^ outcome.impossible, "exactly one answer: {outcome:?}");
    Ok(outcome)
}

/// After a cut that no node has noticed yet: all who are on its other side are passed over before an entry
/// node gives the coordinator up.
#[test]
fn stand_ins_that_are_silent_one_after_the_other_are_passed_over_ever_sooner() {
    let mut quorum = WriteCoordinator::new(plan(3, 1, 2, false, |_| true)).unwrap();
    let (mut now, mut asked) = (Duration::ZERO, Vec::new());
    let mut actions = quorum.begin(now);
    loop {
        for action in std::mem::take(&mut actions) {
            if let WriteAction::Send { to, hint_for: Some(_) } = action {
                asked.push((to.0, now.as_millis()));
            }
        }
        let Some(tick) = quorum.next_tick() else { break };
        now = tick;
        actions = quorum.on_tick(now);
    }
    assert_eq!(asked, [(11, 120), (12, 180), (13, 210)]);
    assert!(crate::limits::FORWARD_PATIENCE > Duration::from_millis(225));
    assert!(quorum.on_reply(node(13), Reply::Ok, now).contains(&WriteAction::Done), "a late answer counts");
}

/// Every node of a plan has each fate: with N=3 and three fallbacks all of them.
fn fates(count: usize) -> impl Iterator<Item = Vec<Fate>> {
    const ALL: [Fate; 5] = [Fate::Acks, Fate::AcksLate, Fate::Fails, Fate::Silent, Fate::Suspected];
    (0..ALL.len().pow(count as u32)).map(move |mut code| {
        (0..count)
            .map(|_| {
                let fate = ALL[code % ALL.len()];
                code /= ALL.len();
                fate
            })
            .collect()
    })
}

fn check_write(n: u64, me: u64, needed: usize, strict: bool, all: &[Fate]) {
    let fate = |node: NodeId| all[(if node.0 > 10 { node.0 - 11 + n } else { node.0 - 1 }) as usize];
    let Ok(outcome) = write(plan(n, me, needed, strict, |_| true), fate) else {
        panic!("all nodes seemed reachable");
    };
    assert!(outcome.asked < 2 * n as usize, "at most 2N nodes with the coordinator");
    let i_am_primary = me <= 10;
    for primary in (1..=n).map(node) {
        let safe = outcome.acked.contains(&primary)
            || !i_am_primary
            || outcome.hinted_here.contains(&primary)
            || outcome.hinted_at.iter().any(|(_, target)| *target == primary);
        assert!(safe, "{primary} is forgotten: {outcome:?}");
    }
    // If enough nodes would acknowledge, the write is done.
    let willing =
        (1..=n).filter(|id| *id == me || matches!(fate(node(*id)), Fate::Acks | Fate::AcksLate)).count();
    if willing >= needed && i_am_primary {
        assert!(outcome.done, "{all:?}");
    }
    let fallbacks = (11..=10 + n).filter(|id| *id != me && fate(node(*id)) == Fate::Acks).count();
    let mine = usize::from(!i_am_primary);
    if !strict && willing + fallbacks + mine >= needed {
        assert!(outcome.done, "fallbacks could have stood in: {all:?} {outcome:?}");
    }
}

#[test]
fn every_fate_of_every_node() {
    for needed in 1..=3 {
        for all in fates(6) {
            check_write(3, 1, needed, false, &all);
        }
        for all in fates(3) {
            let all = [all, vec![Fate::Acks; 3]].concat();
            check_write(3, 2, needed, true, &all);
        }
        for all in fates(6) {
            check_write(3, 11, needed, false, &all);
        }
    }
}

#[test]
fn what_cannot_be_met_is_refused_before_anything_is_sent() {
    let alone = |id| id == 1;
    assert_eq!(
        WriteCoordinator::new(plan(3, 1, 2, true, alone)).err(),
        Some(NotMet { needed: 2, reached: 1 })
    );
    assert_eq!(
        WriteCoordinator::new(plan(3, 1, 2, false, alone)).err(),
        Some(NotMet { needed: 2, reached: 1 })
    );
    assert!(WriteCoordinator::new(plan(3, 1, 2, false, |id| id == 1 || id == 11)).is_ok());
    assert!(
        WriteCoordinator::new(plan(3, 1, 2, true, |id| id == 1 || id == 11)).is_err(),
        "strict: no fallbacks"
    );
    assert!(
        WriteCoordinator::new(plan(3, 11, 1, true, |_| false)).is_err(),
        "a fallback does not count when strict"
    );
    assert!(ReadCoordinator::new(plan(3, 1, 1, true, |_| false), false).is_err());
    assert!(ReadCoordinator::new(plan(3, 1, 1, true, |_| false), true).is_ok());
}

#[test]
fn known_losses_cost_no_patience() {
    // Two primaries are down: the fallback is asked at once, and the other primary is noted here.
    let mut quorum = WriteCoordinator::new(plan(3, 1, 2, false, |id| id == 1 || id > 10)).unwrap();
    let actions = quorum.begin(Duration::ZERO);
    assert_eq!(
        actions,
        vec![
            WriteAction::Send { to: node(11), hint_for: Some(node(2)) },
            WriteAction::HintHere { target: node(3) },
        ]
    );
    let actions = quorum.on_reply(node(11), Reply::Ok, Duration::from_millis(2));
    assert_eq!(actions, vec![WriteAction::Done]);
    assert!(quorum.is_settled());
}

#[test]
fn a_met_write_needs_no_fallback_for_the_last_primary() {
    let mut quorum = WriteCoordinator::new(plan(3, 1, 2, false, |_| true)).unwrap();
    assert_eq!(quorum.begin(Duration::ZERO).len(), 2);
    assert_eq!(quorum.on_reply(node(2), Reply::Ok, Duration::from_millis(1)), vec![WriteAction::Done]);
    assert!(!quorum.is_settled(), "the third may still answer");
    assert_eq!(quorum.on_tick(PATIENCE), vec![WriteAction::HintHere { target: node(3) }]);
    assert!(quorum.is_settled());
}

#[test]
fn reads_ask_r_and_replace_who_is_silent() {
    for needed in 1..=3usize {
        for all in fates(6) {
            for (me, me_counts) in [(1, true), (1, false), (11, true), (20, false)] {
                let fate =
                    |node: NodeId| all[(if node.0 > 10 { node.0 - 11 + 3 } else { node.0 - 1 }) as usize];
                let mut quorum =
                    ReadCoordinator::new(plan(3, me, needed, false, |_| true), me_counts).unwrap();
                let (mut now, mut answers, mut end) = (Duration::ZERO, BTreeSet::new(), None);
                let mut actions: VecDeque<ReadAction> = quorum.begin(now).into();
                assert!(actions.len() == needed);
                let mut late = Vec::new();
                loop {
                    while let Some(action) = actions.pop_front() {
                        match action {
                            ReadAction::Ask { node } if node.0 == me => {
                                assert!(me_counts);
                                answers.insert(node);
                                actions.extend(quorum.on_reply(node, Reply::Ok, now));
                            }
                            ReadAction::Ask { node } => match fate(node) {
                                Fate::Acks => {
                                    answers.insert(node);
                                    actions.extend(quorum.on_reply(node, Reply::Ok, now));
                                }
                                Fate::AcksLate => late.push(node),
                                Fate::Fails => actions.extend(quorum.on_reply(node, Reply::Failed, now)),
                                Fate::Silent => {}
                                Fate::Suspected => actions.extend(quorum.on_suspect(node, now)),
                            },
                            other => {
                                assert!(end.is_none());
                                end = Some(other);
                            }
                        }
                    }
                    if let Some(tick) = quorum.next_tick().filter(|_| end.is_none()) {
                        now = tick;
                        actions.extend(quorum.on_tick(now));
                    } else if let Some(node) = late.pop() {
                        answers.insert(node);
                        actions.extend(quorum.on_reply(node, Reply::Ok, now));
                    } else {
                        break;
                    }
                }
                if end == Some(ReadAction::Done) {
                    assert!(answers.len() >= needed);
                } else {
                    assert!(answers.len() < needed, "{all:?}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn larger_rings(n in 4u64..=7, needed in 1usize..=4, strict: bool, codes in proptest::collection::vec(0usize..5, 14)) {
        const ALL: [Fate; 5] = [Fate::Acks, Fate::AcksLate, Fate::Fails, Fate::Silent, Fate::Suspected];
        let all: Vec<Fate> = codes.into_iter().map(|code| ALL[code]).collect();
        check_write(n, 1, needed, strict, &all);
    }
}
