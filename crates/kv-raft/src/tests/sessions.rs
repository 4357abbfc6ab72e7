//! The rules of sessions: once, whatever clocks say and whatever was forgotten, within bounds, and without
//! one client being locked out by another.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_types::limits::{SESSION_IDLE, SESSION_WINDOW};
use kv_types::{Applied, NamespaceId, Reason};
use proptest::prelude::*;

use super::bench::{Bench, SPACE, put, refusal, revision, swap};
use crate::kv_machine::{Operation, WriteCommand};
use crate::limits::{MAX_SESSION_AHEAD, SESSION_BYTES, SESSION_RESULT_BYTES};
use crate::machine_error::MachineError;
use crate::sessions::SessionBounds;
use crate::tables::{Table, for_each_row};

const IDLE: u64 = SESSION_IDLE.as_millis() as u64;
const AHEAD: u64 = MAX_SESSION_AHEAD.as_millis() as u64;
const HOUR: u64 = 3_600_000;

/// Few sessions, so that they are forgotten soon.
const FEW: SessionBounds = SessionBounds { sessions: 8, ahead: 2, bytes: 1 << 20 };

/// The lengths of all rows of sessions.
fn rows(bench: &Bench) -> Vec<usize> {
    let mut lengths = Vec::new();
    for_each_row(&bench.storage, SPACE, Table::Sessions, |_, row| {
        lengths.push(row.len());
        Ok::<(), MachineError>(())
    })
    .unwrap();
    lengths
}

/// How many rows of sessions each namespace has.
fn sessions_of(bench: &Bench) -> BTreeMap<NamespaceId, usize> {
    let mut counts = BTreeMap::new();
    for_each_row(&bench.storage, SPACE, Table::Sessions, |key, _| {
        *counts.entry(crate::tables::keys::of_session(key)?.0).or_default() += 1;
        Ok::<(), MachineError>(())
    })
    .unwrap();
    counts
}

fn first_attempt(mut command: WriteCommand) -> WriteCommand {
    command.mutation.attempt = 1;
    command
}

fn issued(mut command: WriteCommand, at: u64) -> WriteCommand {
    command.mutation.issued_at_ms = at;
    command
}

#[tokio::test]
async fn a_session_is_opened_by_its_first_write_only() {
    let mut bench = Bench::new();
    let refused = refusal(bench.write(1, 2, "a", put("1")).await);
    assert_eq!(refused, (Reason::SessionExpired, Applied::Unknown));
    let never_sent = first_attempt(bench.command(1, 2, "a", put("1")));
    assert_eq!(refusal(bench.apply(&never_sent).await), (Reason::SessionExpired, Applied::No));
    bench.write(1, 1, "a", put("1")).await.unwrap();
    bench.write(1, 2, "a", put("1")).await.unwrap();
}

#[tokio::test]
async fn a_client_has_a_session_per_namespace() {
    let mut bench = Bench::new();
    bench.write(1, 1, "a", put("1")).await.unwrap();
    let elsewhere = |command| WriteCommand { namespace: NamespaceId(2), ..command };
    let second = elsewhere(bench.command(1, 2, "a", put("1")));
    assert_eq!(refusal(bench.apply(&second).await).0, Reason::SessionExpired);
    let opening = elsewhere(bench.command(1, 1, "a", put("2")));
    assert!(!bench.apply(&opening).await.unwrap().deduplicated);
    assert_eq!(rows(&bench).len(), 2);
}

#[tokio::test]
async fn results_are_kept_above_what_was_acknowledged_and_in_a_window() {
    let mut bench = Bench::new();
    for seq in 1..=5 {
        bench.write(1, seq, "a", put("1")).await.unwrap();
    }
    let mut acknowledged = bench.command(1, 6, "a", put("1"));
    acknowledged.mutation.lowest_unacked = 4;
    bench.apply(&acknowledged).await.unwrap();
    for (restarted, seq, kept) in [(false, 3, false), (false, 4, true), (true, 3, false), (true, 4, true)] {
        if restarted {
            bench.reload();
        }
        let answer = bench.write(1, seq, "a", put("1")).await;
        assert_eq!(answer.is_ok(), kept, "{seq}");
        if !kept {
            assert_eq!(refusal(answer), (Reason::RequestExpired, Applied::Unknown));
        }
    }
    // The window moves with the highest seq; writes within it may arrive in any order.
    bench.write(1, 6 + SESSION_WINDOW, "a", put("1")).await.unwrap();
    assert_eq!(refusal(bench.write(1, 6, "a", put("1")).await).0, Reason::RequestExpired);
    assert!(!bench.write(1, 7, "a", put("1")).await.unwrap().deduplicated);
    bench.reload();
    assert!(bench.write(1, 7, "a", put("1")).await.unwrap().deduplicated);
}

#[tokio::test]
async fn an_idle_session_is_forgotten_and_its_opening_is_not_repeated() {
    let mut bench = Bench::new();
    let opening = bench.command(1, 1, "a", put("1"));
    bench.apply(&opening).await.unwrap();
    bench.rest(IDLE - 1).await;
    assert!(bench.write(1, 1, "a", put("1")).await.unwrap().deduplicated);
    bench.rest(1).await;
    let late = WriteCommand { proposed_at_ms: bench.now, ..opening };
    assert_eq!(refusal(bench.apply(&late).await), (Reason::RequestExpired, Applied::Unknown));
    bench.reload();
    assert_eq!(refusal(bench.apply(&late).await), (Reason::RequestExpired, Applied::Unknown));
    assert_eq!(refusal(bench.write(1, 2, "a", put("1")).await).0, Reason::SessionExpired);
    assert_eq!(revision(bench.write(3, 1, "a", put("1")).await), 2);
}

#[tokio::test]
async fn a_leader_an_hour_ahead_forgets_no_session() {
    let mut bench = Bench::new();
    for client in 1..=20 {
        bench.write(client, 1, "a", put("1")).await.unwrap();
    }
    // Another leader, whose clock is ahead; then one whose clock is behind; and a clock that leaps within a
    // term.
    for (term, now) in [(2, bench.now + HOUR), (3, bench.now - HOUR), (3, bench.now + HOUR)] {
        (bench.term, bench.now) = (term, now);
        bench.write(30 + u128::from(term), 1, "b", put("1")).await.unwrap_or_else(|failure| {
            // The client's clock is as far behind as the leader's.
            panic!("{failure}")
        });
        for client in 1..=20 {
            assert!(bench.write(client, 1, "a", put("1")).await.unwrap().deduplicated, "{client} in {term}");
        }
    }
}

#[tokio::test]
async fn clocks_that_are_wrong_are_named_at_the_first_attempt() {
    let mut bench = Bench::new();
    bench.write(1, 1, "a", put("1")).await.unwrap();
    let latest = bench.now;
    let ahead = issued(first_attempt(bench.command(2, 1, "a", put("2"))), latest + AHEAD + 1);
    let failure = bench.apply(&ahead).await.unwrap_err();
    assert_eq!((failure.reason, failure.applied), (Reason::RequestIdInvalid, Applied::No));
    assert_eq!(failure.detail("clock_ahead_ms"), Some("60001"));
    // The node that is asked says the same without the log.
    assert_eq!(bench.openings().check(&ahead.mutation).map_err(|f| f.reason), Err(Reason::RequestIdInvalid));
    assert_eq!(bench.openings().at(latest + 1).check(&ahead.mutation), Ok(()));
    let at_bound = issued(bench.command(2, 1, "a", put("2")), latest + AHEAD);
    bench.apply(&at_bound).await.unwrap();

    // Sessions are forgotten, and a client comes whose clock is 700 s behind.
    bench.rest(IDLE + 100_000).await;
    let behind = issued(first_attempt(bench.command(3, 1, "a", put("3"))), bench.now - 700_000);
    for failure in
        [bench.apply(&behind).await.unwrap_err(), bench.openings().check(&behind.mutation).unwrap_err()]
    {
        assert_eq!((failure.reason, failure.applied), (Reason::RequestIdInvalid, Applied::No));
        assert_eq!(failure.detail("clock_behind_ms"), Some("700000"));
        assert!(failure.message.contains("set the client's clock"), "{failure}");
    }
    // A later attempt may have been taken before: that is open.
    let mut again = behind;
    again.mutation.attempt = 2;
    assert_eq!(refusal(bench.apply(&again).await), (Reason::RequestExpired, Applied::Unknown));
}

/// The findings B12, B7 and C7: one client whose clock is ahead, then more sessions than are kept.
#[tokio::test]
async fn a_clock_that_is_ahead_locks_out_no_other() {
    let mut bench = Bench::bounded(FEW);
    let ahead = issued(bench.command(1, 1, "a", put("1")), bench.now + AHEAD);
    bench.apply(&ahead).await.unwrap();
    for client in 2..100 {
        bench.now += 1;
        let written = bench.write(client, 1, "a", put("1")).await;
        assert_eq!(written.map(|written| written.deduplicated), Ok(false), "{client}");
        assert!(bench.openings().horizon <= bench.now);
        bench.reload();
    }
    assert!(bench.apply(&ahead).await.unwrap().deduplicated, "it stays until its time has come");
    bench.rest(AHEAD).await;
    for client in 100..120 {
        bench.now += 1;
        bench.write(client, 1, "a", put("1")).await.unwrap();
    }
    assert_eq!(refusal(bench.apply(&ahead).await), (Reason::RequestExpired, Applied::Unknown));
}

#[tokio::test]
async fn sessions_ahead_of_time_are_few() {
    let mut bench = Bench::bounded(FEW);
    let ahead = |bench: &Bench, client| issued(bench.command(client, 1, "a", put("1")), bench.now + AHEAD);
    for client in 1..=FEW.ahead as u128 {
        let command = ahead(&bench, client);
        bench.apply(&command).await.unwrap();
    }
    let one_more = ahead(&bench, 50);
    assert_eq!(refusal(bench.apply(&one_more).await), (Reason::Overloaded, Applied::No));
    bench.write(51, 1, "a", put("1")).await.unwrap();
    bench.rest(AHEAD).await;
    bench.apply(&one_more).await.unwrap();
}

/// Log time may stand still: then the order of the log tells which session was used last, also after a
/// restart.
#[tokio::test]
async fn the_session_unused_longest_is_forgotten_first() {
    let mut bench = Bench::bounded(FEW);
    bench.now += 1;
    for client in (1..=8).rev() {
        bench.write(client, 1, "a", put("1")).await.unwrap();
    }
    bench.write(8, 2, "a", put("2")).await.unwrap();
    bench.reload();
    for (newcomer, forgotten) in [(20, 7), (21, 6), (22, 5)] {
        bench.now += 1;
        bench.write(newcomer, 1, "a", put("1")).await.unwrap();
        assert_eq!(rows(&bench).len(), FEW.sessions, "at the bound");
        assert_eq!(refusal(bench.write(forgotten, 2, "a", put("2")).await).0, Reason::SessionExpired);
    }
    assert!(bench.write(8, 2, "a", put("2")).await.unwrap().deduplicated);
    assert!(bench.write(4, 1, "a", put("1")).await.unwrap().deduplicated);
}

#[tokio::test]
async fn sessions_are_bounded_in_bytes() {
    // Room for three sessions with two results each.
    let bytes = 3 * (SESSION_BYTES + 2 * SESSION_RESULT_BYTES);
    let mut bench = Bench::bounded(SessionBounds { sessions: 100, ahead: 10, bytes });
    for client in 1..=3 {
        for seq in 1..=2 {
            bench.write(client, seq, "a", put("1")).await.unwrap();
        }
    }
    assert_eq!(rows(&bench).len(), 3, "at the bound");
    bench.write(3, 3, "a", put("1")).await.unwrap();
    assert_eq!(rows(&bench).len(), 2, "beyond it");
    assert_eq!(refusal(bench.write(1, 3, "a", put("1")).await).0, Reason::SessionExpired);
    for seq in 1..=3 {
        assert!(bench.write(3, seq, "a", put("1")).await.unwrap().deduplicated);
    }
    // One session alone fills it, and is refused one more result: it may not forget itself.
    let bytes = SESSION_BYTES + 2 * SESSION_RESULT_BYTES;
    let mut bench = Bench::bounded(SessionBounds { sessions: 100, ahead: 10, bytes });
    bench.write(1, 1, "a", put("1")).await.unwrap();
    bench.write(1, 2, "a", put("1")).await.unwrap();
    assert_eq!(refusal(bench.write(1, 3, "a", put("1")).await), (Reason::Overloaded, Applied::No));
}

/// A namespace with many sessions, or with much in them, pushes out its own.
#[tokio::test]
async fn a_namespace_that_floods_pushes_out_its_own_sessions() {
    let elsewhere = |command| WriteCommand { namespace: NamespaceId(2), ..command };
    let price = SESSION_BYTES + 2 * SESSION_RESULT_BYTES;
    for (bounds, results) in [(FEW, 1), (SessionBounds { sessions: 100, ahead: 10, bytes: 8 * price }, 2)] {
        let mut bench = Bench::bounded(bounds);
        let calm = elsewhere(bench.command(1, 1, "calm", put("1")));
        bench.apply(&calm).await.unwrap();
        for client in 10..60 {
            bench.now += 1;
            for seq in 1..=results {
                bench.write(client, seq, "a", put("1")).await.unwrap();
            }
            // What decides is in the rows.
            if client % 7 == 0 {
                bench.reload();
            }
        }
        assert!(bench.apply(&calm).await.unwrap().deduplicated, "{bounds:?}");
        bench.now += 1;
        let next = elsewhere(bench.command(1, 2, "calm", put("2")));
        bench.apply(&next).await.unwrap();
        // Of its own, those unused longest.
        assert!(bench.write(59, 1, "a", put("1")).await.unwrap().deduplicated);
        assert_eq!(refusal(bench.write(10, 2, "a", put("2")).await).0, Reason::SessionExpired);
        // The calm one may not take what the other has: it gets as much.
        for client in 100..150 {
            bench.now += 1;
            let opening = elsewhere(bench.command(client, 1, "calm", put("3")));
            bench.apply(&opening).await.unwrap();
        }
        let kept = sessions_of(&bench);
        assert!(kept[&NamespaceId(1)].abs_diff(kept[&NamespaceId(2)]) <= 2, "{kept:?}");
    }
}

/// What is forgotten in one namespace keeps no client out of another, even one whose clock is a little slow.
#[tokio::test]
async fn a_slow_clock_opens_sessions_where_none_was_forgotten() {
    let mut bench = Bench::bounded(FEW);
    for client in 10..60 {
        bench.now += 1_000;
        bench.write(client, 1, "a", put("1")).await.unwrap();
    }
    for restarted in [false, true] {
        if restarted {
            bench.reload();
        }
        let slow = |bench: &Bench, client| {
            issued(first_attempt(bench.command(client, 1, "a", put("1"))), bench.now - 20_000)
        };
        let barred = slow(&bench, 200);
        assert_eq!(refusal(bench.apply(&barred).await), (Reason::RequestIdInvalid, Applied::No));
        let client = if restarted { 301 } else { 300 };
        let elsewhere = WriteCommand { namespace: NamespaceId(2), ..slow(&bench, client) };
        bench.apply(&elsewhere).await.unwrap();
    }
}

/// The finding C6: comparisons that do not hold, on a large value.
#[tokio::test]
async fn what_a_comparison_found_is_not_kept() {
    let mut bench = Bench::new();
    let large = Bytes::from(vec![7; 1 << 20]);
    bench.write(1, 1, "large", Operation::Put(large.clone())).await.unwrap();
    for seq in 2..=SESSION_WINDOW {
        let mismatch = bench.write(1, seq, "large", swap(99, "")).await.unwrap();
        assert!(matches!(mismatch.effect, crate::proposal::Effect::Mismatch { found: Some(_) }));
    }
    let kept = rows(&bench);
    assert_eq!(kept.len(), 1);
    assert!(kept.iter().sum::<usize>() <= 20 << 10, "{kept:?}");
    assert!(bench.write(1, 2, "large", swap(99, "")).await.unwrap().deduplicated);
}

/// What a step is expected to write of its sessions is counted before it is encoded.
#[tokio::test]
async fn a_step_counts_the_sessions_that_it_will_write() {
    let mut bench = Bench::new();
    for seq in 1..=500 {
        bench.write(1, seq, "a", put("1")).await.unwrap();
    }
    let storage = bench.storage.clone();
    let commands = [501, 502].map(|seq| bench.command(1, seq, "a", put("1")));
    let mut stage = crate::tables::Stage::new(&storage, SPACE);
    let (sealed, _) = bench.stage(stage, &commands);
    stage = sealed;
    let expected = SESSION_BYTES + 501 * SESSION_RESULT_BYTES;
    assert!(stage.bytes() as u64 >= expected, "{}", stage.bytes());
}

#[derive(Debug, Clone)]
enum Event {
    /// A new client, whose clock is off by so much, opens a session.
    Open(i64),
    /// A client whose clock is right does.
    OpenInTime,
    /// An earlier write is sent again.
    Resend(prop::sample::Index),
    /// A client that was seen writes again.
    Write(prop::sample::Index),
    /// Time passes.
    Pass(u64),
    /// Another leader, whose clock is off by so much.
    Lead(i64),
    Restart,
}

fn any_event() -> impl Strategy<Value = Event> {
    let (ahead, hour) = (AHEAD as i64, HOUR as i64);
    let skews = [0, 1, 30_000, ahead - 1, ahead, ahead + 1, 2 * hour, -1, -5_000, -700_000];
    prop_oneof![
        6 => prop::sample::select(skews.to_vec()).prop_map(Event::Open),
        3 => Just(Event::OpenInTime),
        6 => any::<prop::sample::Index>().prop_map(Event::Resend),
        3 => any::<prop::sample::Index>().prop_map(Event::Write),
        4 => prop::sample::select(vec![1, 7, 1_000, AHEAD / 2, AHEAD, IDLE]).prop_map(Event::Pass),
        1 => prop::sample::select(vec![0, hour, -hour, 300, -300]).prop_map(Event::Lead),
        1 => Just(Event::Restart),
    ]
}

/// What the sessions must do, told without them.
#[derive(Default)]
struct Model {
    sent: Vec<WriteCommand>,
    applied: BTreeSet<(u128, u64)>,
    next: BTreeMap<u128, u64>,
    revision: u64,
}

impl Model {
    async fn send(&mut self, bench: &mut Bench, mut command: WriteCommand, leader: u64) {
        command.proposed_at_ms = leader;
        let id = command.mutation.request_id;
        let id = (id.client_id.0, id.seq);
        let answer = bench.apply(&command).await;
        let before = self.applied.contains(&id);
        match answer {
            Ok(written) if written.deduplicated => assert!(before, "{id:?} was never applied"),
            Ok(written) => {
                assert!(!before, "{id:?} is applied twice");
                self.applied.insert(id);
                self.revision += 1;
                assert_eq!(written.namespace_revision, self.revision);
            }
            Err(failure) if failure.applied == Applied::No => {
                let definite = command.mutation.attempt == 1 || !before;
                assert!(definite, "{id:?} was applied, and a resend is told: {failure}");
            }
            Err(_) => {}
        }
        let openings = bench.openings();
        assert!(openings.horizon <= openings.latest, "{openings:?}");
        command.mutation.attempt = 2;
        self.sent.push(command);
    }
}

async fn play(events: Vec<Event>) {
    let mut bench = Bench::bounded(SessionBounds { sessions: 6, ahead: 2, bytes: 1 << 20 });
    let mut model = Model::default();
    let (mut now, mut offset, mut client) = (bench.now, 0_i64, 0_u128);
    for event in events {
        let leader = now.saturating_add_signed(offset);
        match event {
            Event::Open(_) | Event::OpenInTime => {
                client += 1;
                let latest = bench.openings().latest.max(leader);
                let at = match event {
                    Event::Open(skew) => now.saturating_add_signed(skew),
                    _ => latest,
                };
                let in_time = at == latest && bench.openings().horizon < latest;
                let opening = issued(first_attempt(bench.command(client, 1, "k", put("v"))), at);
                model.next.insert(client, 2);
                model.send(&mut bench, opening, leader).await;
                assert!(!in_time || model.applied.contains(&(client, 1)), "a client in time is locked out");
            }
            Event::Resend(which) if !model.sent.is_empty() => {
                let command = which.get(&model.sent).clone();
                model.send(&mut bench, command, leader).await;
            }
            Event::Write(which) if client > 0 => {
                let writer = which.index(client as usize) as u128 + 1;
                let seq = model.next[&writer];
                model.next.insert(writer, seq + 1);
                let command = first_attempt(bench.command(writer, seq, "k", put("v")));
                model.send(&mut bench, command, leader).await;
            }
            Event::Resend(_) | Event::Write(_) => {}
            Event::Pass(ms) => now += ms,
            Event::Lead(by) => {
                bench.term += 1;
                offset = by;
            }
            Event::Restart => bench.reload(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Clocks ahead and behind, leaders that change, sessions that are forgotten, resends: nothing is applied
    /// twice, a definite *no* is true, the horizon stays behind the leaders' clocks, and who is in time is
    /// let in.
    #[test]
    fn once_and_just_whatever_the_clocks_say(events in proptest::collection::vec(any_event(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(events));
    }
}
