//! Members that get a snapshot: large states, interrupted transfers, damaged files, and messages that no
//! leader sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kv_peer::{Address, Lane};
use kv_proto::peer::raft_snapshot::Step;
use kv_proto::peer::raft_snapshot_reply::Result as SnapshotReply;
use kv_proto::peer::request_frame::Body as Request;
use kv_proto::peer::response_frame::Body as Response;
use kv_proto::{admin, peer, v1};
use kv_raft::RaftConfig;
use kv_types::{GroupId, Hop, Namespace, NodeId};

use crate::support::{Client, Cluster, Valve, put, soon, value, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_long_gets_a_snapshot() {
    let mut cluster = Cluster::start(|config| {
        config.snapshot_every = 40;
        config.entries_kept = 5;
    })
    .await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    put(cluster.strong(1), &bank, client.put("first", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let away = leader % 3 + 1;
    let had = cluster.strong(away).status().into_iter().find(|s| s.group == 1).unwrap().last_index;
    cluster.kill(away).await;
    let last = client.put("last", "x");
    for n in 0..100 {
        put(cluster.strong(leader), &bank, client.put(&format!("k{n}"), "v")).await;
    }
    put(cluster.strong(leader), &bank, v1::PutRequest { mutation: Some(client.mutation()), ..last.clone() })
        .await;
    let data =
        |cluster: &Cluster, id: u64| cluster.strong(id).status().into_iter().find(|s| s.group == 1).unwrap();
    // Beyond what the member has; not further for a while, because the snapshot that it is offered holds the
    // log.
    within("a purged log", || async { (data(&cluster, leader).purged_index > had).then_some(()) }).await;
    let purged = data(&cluster, leader).purged_index;
    cluster.bring_up(away).await;
    within("the state of the others", || async {
        let (there, here) = (data(&cluster, leader), data(&cluster, away));
        (here.applied_index >= there.applied_index && here.snapshot_index >= purged).then_some(())
    })
    .await;
    // All of them have the same, and each says so for itself.
    within("one digest of every replica", || async {
        let mut said = Vec::new();
        for id in 1..=3 {
            said.push(cluster.strong(id).digest(&bank, soon()).await.unwrap());
        }
        assert!(said.iter().all(|one| one.applied_index.is_some() && one.partitions.len() == 1));
        (said[0].partitions[0].keys == 102 && said.iter().all(|one| *one == said[0])).then_some(())
    })
    .await;
    // It can lead with what it was given, and knows the sessions.
    let transfer = admin::TransferLeaderRequest { group: 1, to: away };
    within("its leadership", || async {
        cluster.strong(away).transfer_leader(transfer, soon(), Hop::Client).await.ok()
    })
    .await;
    assert_eq!(value(cluster.strong(away), &bank, "last").await.1, 102);
    assert_eq!(value(cluster.strong(away), &bank, "first").await.1, 1);
    assert_eq!(put(cluster.strong(away), &bank, client.put("more", "x")).await.revision, 103);
    // And starts again from what it installed, also when it lost its tables: the log below the snapshot is
    // gone.
    cluster.kill(away).await;
    std::fs::remove_dir_all(cluster.dirs[usize::try_from(away).unwrap() - 1].join("tier")).unwrap();
    cluster.bring_up(away).await;
    within("its state", || async { (data(&cluster, away).applied_index > purged).then_some(()) }).await;
    assert_eq!(value(cluster.strong(away), &bank, "more").await.1, 103);
    cluster.stop().await;
}

/// Small pieces, so that a small state is far larger than a message.
fn in_pieces(config: &mut RaftConfig) {
    config.snapshot_every = 40;
    config.entries_kept = 5;
    config.transfer_chunk_bytes = 2 << 10;
    config.transfer_sync_bytes = 8 << 10;
    // Some two seconds for the whole.
    config.transfer_bytes_per_second = 256 << 10;
}

const VALUE_BYTES: usize = 8 << 10;

/// Kills a follower and writes until the leader has purged what it would need; returns leader and follower.
async fn left_behind(cluster: &mut Cluster, bank: &Namespace, client: &Client) -> (u64, u64) {
    put(cluster.strong(1), bank, client.put("first", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let away = leader % 3 + 1;
    let left = cluster.data(away).last_index;
    cluster.kill(away).await;
    let value = "v".repeat(VALUE_BYTES);
    for n in 0..64 {
        put(cluster.strong(leader), bank, client.put(&format!("k{n}"), &value)).await;
    }
    within("a purged log", || async { (cluster.data(leader).purged_index > left).then_some(()) }).await;
    (leader, away)
}

/// What a process before was writing when it was killed holds room that the next snapshot needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_process_left_of_a_snapshot_is_gone_after_a_start() {
    let mut cluster = Cluster::start(|_| {}).await;
    cluster.kill(2).await;
    let folder = cluster.dirs[1].join("snapshots").join(GroupId::FIRST_DATA.0.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let left = folder.join("0000000000000007.tmp");
    std::fs::write(&left, [0; 1_000]).unwrap();
    cluster.bring_up(2).await;
    assert!(!left.exists());
    cluster.stop().await;
}

pub(crate) async fn same_digest_everywhere(cluster: &Cluster, bank: &Namespace) {
    within("one digest of every replica", || async {
        let mut said = Vec::new();
        for id in 1..=3 {
            said.push(cluster.strong(id).digest(bank, soon()).await.ok()?);
        }
        said.iter().all(|one| *one == said[0]).then_some(())
    })
    .await;
}

/// Entries come faster than the follower gets the snapshot: what follows the snapshot is kept for it, or it
/// would be behind the purge point again at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_larger_than_a_message_reaches_a_member_while_writes_go_on() {
    let mut cluster = Cluster::start(in_pieces).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let (leader, away) = left_behind(&mut cluster, &bank, &client).await;

    let (strong, load_bank) = (cluster.strong(leader).clone(), bank.clone());
    let written = Arc::new(AtomicU64::new(0));
    let counted = written.clone();
    let load = tokio::spawn(async move {
        let client = Client::new(2);
        loop {
            let n = counted.load(Ordering::Relaxed);
            put(&strong, &load_bank, client.put(&format!("k{}", n % 64), "w")).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    cluster.bring_up(away).await;
    // It comes near the end of a log that goes on growing, having begun behind the purge point.
    within("the follower near the end", || async {
        let (there, here) = (cluster.data(leader), cluster.data(away));
        (here.applied_index > 0 && here.applied_index + 20 >= there.last_index).then_some(())
    })
    .await;
    assert!(written.load(Ordering::Relaxed) > 40, "a snapshot was due meanwhile: {written:?}");
    assert!(!load.is_finished());
    let pieces = cluster.valve(away).pieces.clone();
    assert!(pieces.len() > 100, "{} pieces", pieces.len());
    // One transfer, in order: nothing was sent twice.
    assert!(pieces.windows(2).all(|pair| pair[0] < pair[1]), "{pieces:?}");
    load.abort();
    same_digest_everywhere(&cluster, &bank).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_goes_on_where_it_was_after_a_restart_of_the_receiver() {
    let mut cluster = Cluster::start(in_pieces).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let (leader, away) = left_behind(&mut cluster, &bank, &client).await;
    *cluster.valve(away) = Valve { pieces_taken: Some(60), flips: 3, ..Valve::default() };
    cluster.bring_up(away).await;
    within("half of it", || async { (cluster.valve(away).pieces.len() >= 60).then_some(()) }).await;
    // Pieces that were damaged on the way were sent again, not taken.
    assert_eq!(cluster.strong(away).snapshot_refusals().get("wrong_checksum"), Some(&3));
    assert_eq!(cluster.valve(away).pieces[..4], [0, 0, 0, 0]);
    // Not able to acknowledge anything meanwhile, and not counted as if it were.
    within("it is reachable and not able", || async {
        let status = cluster.data(leader);
        (status.reachable_voters == 3 && status.able_voters == 2).then_some(())
    })
    .await;
    cluster.kill(away).await;
    *cluster.valve(away) = Valve::default();
    cluster.bring_up(away).await;
    within("the state", || async {
        (cluster.data(away).applied_index == cluster.data(leader).applied_index).then_some(())
    })
    .await;
    let first = cluster.valve(away).pieces[0];
    assert!(first >= 60 * 1024, "it began again at {first}");
    same_digest_everywhere(&cluster, &bank).await;
    within("it counts again", || async { (cluster.data(leader).able_voters == 3).then_some(()) }).await;
    cluster.stop().await;
}

/// Bits rot in the only snapshot of a leader, and no writes come that would make another one due. (The other
/// member has one of its own, so it is not asked.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_taken_again_for_the_follower_that_needs_it() {
    let mut cluster = Cluster::start(in_pieces).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    let client = Client::new(1);
    let (leader, away) = left_behind(&mut cluster, &bank, &client).await;
    let place = usize::try_from(leader - 1).unwrap();
    let files = cluster.dirs[place].join("snapshots").join(GroupId::FIRST_DATA.0.to_string());
    let mut damaged = Vec::new();
    for file in std::fs::read_dir(&files).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        damaged.push((path, bytes));
    }
    cluster.bring_up(away).await;
    // Another one may have its name.
    within("the damaged file is gone", || async {
        damaged.iter().all(|(path, bytes)| std::fs::read(path).ok().as_ref() != Some(bytes)).then_some(())
    })
    .await;
    within("the state", || async {
        (cluster.data(away).applied_index == cluster.data(leader).applied_index).then_some(())
    })
    .await;
    same_digest_everywhere(&cluster, &bank).await;
    cluster.stop().await;
}

/// Whatever is announced or sent: refused by name, and the node goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_cannot_be_are_refused_by_name() {
    let cluster = Cluster::start(|_| {}).await;
    let bank = cluster.namespace("bank", &Client::new(99)).await;
    put(cluster.strong(1), &bank, Client::new(1).put("a", "1")).await;
    let leader = cluster.leader(GroupId::FIRST_DATA).await;
    let to = leader % 3 + 1;
    let term = cluster.data(leader).term;
    let vote = peer::Vote { term, node: leader, committed: true };
    let send = |vote: peer::Vote, step: Option<Step>| {
        let body = Request::RaftSnapshot(peer::RaftSnapshot { vote: Some(vote), step });
        let about = Address { group: GroupId::FIRST_DATA, ..Address::default() };
        let peers = cluster.nodes[&leader].peers.clone();
        async move { peers.call(NodeId(to), Lane::Bulk, about, body, soon()).await }
    };
    let result = |answer: Result<Response, kv_peer::PeerError>| match answer.unwrap() {
        Response::RaftSnapshot(reply) => reply.result.unwrap(),
        other => panic!("{other:?}"),
    };
    let name = |answer| match result(answer) {
        SnapshotReply::Refused(refused) => refused.reason(),
        other => panic!("{other:?}"),
    };
    let last = peer::LogId { term, node: leader, index: 1_000_000 };
    let membership = {
        // Version, no log id, one configuration of one voter, one node.
        let words: [u32; 2] = [1, 1];
        let mut bytes = vec![1, 0];
        words.iter().for_each(|word| bytes.extend_from_slice(&word.to_be_bytes()));
        bytes.extend_from_slice(&1_u64.to_be_bytes());
        bytes.extend_from_slice(&1_u32.to_be_bytes());
        bytes.extend_from_slice(&1_u64.to_be_bytes());
        Bytes::from(bytes)
    };
    let good = peer::SnapshotBegin {
        last_log_id: Some(last),
        membership: membership.clone(),
        snapshot_id: 1_000_001,
        length: 10_000,
        checksum: 1,
    };
    let begin = |begin: peer::SnapshotBegin| send(vote, Some(Step::Begin(begin)));
    use peer::SnapshotRefusal as R;

    // Announcements.
    let newer = peer::LogId { term: term + 1, ..last };
    let beyond = peer::LogId { index: u64::MAX, ..last };
    for (bad, refusal) in [
        (peer::SnapshotBegin { last_log_id: None, ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { last_log_id: Some(newer), ..good.clone() }, R::Invalid),
        (
            peer::SnapshotBegin { last_log_id: Some(beyond), snapshot_id: u64::MAX, ..good.clone() },
            R::Invalid,
        ),
        (peer::SnapshotBegin { membership: Bytes::from_static(b"no"), ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { membership: vec![1; 20 << 10].into(), ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { snapshot_id: 3, ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { length: 0, ..good.clone() }, R::Invalid),
        (peer::SnapshotBegin { length: (1 << 40) + 1, ..good.clone() }, R::TooLarge),
        (peer::SnapshotBegin { length: u64::MAX, ..good.clone() }, R::TooLarge),
    ] {
        assert_eq!(name(begin(bad.clone()).await), refusal, "{bad:?}");
    }
    // Votes: an older leader is told of the newer one; who is not the leader by its own vote is refused.
    let older = peer::Vote { term: term - 1, ..vote };
    match result(send(older, Some(Step::Begin(good.clone()))).await) {
        SnapshotReply::HigherVote(higher) => assert_eq!(higher.term, term),
        other => panic!("{other:?}"),
    }
    let false_votes = [
        (peer::Vote { node: to, ..vote }, "FOREIGN_VOTE"),
        (peer::Vote { committed: false, ..vote }, "NOT_ELECTED"),
    ];
    for (false_vote, why) in false_votes {
        let refused = send(false_vote, Some(Step::Begin(good.clone()))).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    assert!(send(vote, None).await.unwrap_err().to_string().contains("unknown here"));
    // Pieces of nothing.
    let chunk = |transfer, offset, data: &[u8], checksum| {
        let data = Bytes::copy_from_slice(data);
        send(vote, Some(Step::Chunk(peer::SnapshotChunk { transfer, offset, data, checksum })))
    };
    assert_eq!(name(chunk(1, 0, b"x", 0).await), R::UnknownTransfer);
    assert_eq!(
        name(send(vote, Some(Step::End(peer::SnapshotEnd { transfer: 1 }))).await),
        R::UnknownTransfer
    );
    // Pieces that do not fit.
    let SnapshotReply::Wanted(wanted) = result(begin(good.clone()).await) else { panic!("not wanted") };
    let (transfer, piece) = (wanted.transfer, vec![7; 6_000]);
    let sum = crc32c::crc32c(&piece);
    assert_eq!(wanted.offset, 0);
    assert_eq!(name(chunk(transfer, 0, &piece, sum ^ 1).await), R::WrongChecksum);
    assert_eq!(name(chunk(transfer, 5, &piece, sum).await), R::WrongOffset);
    assert_eq!(name(chunk(transfer, u64::MAX, &piece, sum).await), R::WrongOffset);
    assert_eq!(name(chunk(transfer + 1, 0, &piece, sum).await), R::UnknownTransfer);
    assert_eq!(name(chunk(transfer, 0, b"", 0).await), R::Invalid);
    let end = || send(vote, Some(Step::End(peer::SnapshotEnd { transfer })));
    assert_eq!(name(end().await), R::Incomplete);
    assert!(matches!(result(chunk(transfer, 0, &piece, sum).await), SnapshotReply::Wanted(_)));
    assert_eq!(name(chunk(transfer, 6_000, &piece, sum).await), R::BeyondLength);
    let rest = vec![8; 4_000];
    assert!(matches!(
        result(chunk(transfer, 6_000, &rest, crc32c::crc32c(&rest)).await),
        SnapshotReply::Wanted(wanted) if wanted.offset == 10_000
    ));
    // The whole is not what was announced.
    let refused = within("a verdict", || async {
        match result(end().await) {
            SnapshotReply::Working(_) => None,
            SnapshotReply::Refused(refused) => Some(refused.reason()),
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(refused, R::Damaged);
    let refusals = cluster.strong(to).snapshot_refusals();
    assert_eq!(refusals.get("damaged"), Some(&1), "{refusals:?}");
    assert_eq!(refusals.get("too_large"), Some(&2), "{refusals:?}");
    // Nothing of it is left, what is committed here is not asked for, and the node serves.
    assert_eq!(name(end().await), R::UnknownTransfer);
    let known = peer::LogId { index: 1, term: 1, node: leader };
    let have = peer::SnapshotBegin { last_log_id: Some(known), snapshot_id: 2, ..good };
    assert!(matches!(result(begin(have).await), SnapshotReply::Installed(_)));
    assert_eq!(value(cluster.strong(to), &bank, "a").await.0, Bytes::from_static(b"1"));
    assert_eq!(put(cluster.strong(to), &bank, Client::new(2).put("b", "1")).await.revision, 2);
    cluster.stop().await;
}
