//! Both planners against each other over a channel that loses, repeats, delays and corrupts, with restarts on
//! either side: what comes out is the file or nothing, and when the faults end it is the file.

use proptest::prelude::*;

use super::*;
use crate::codec::log_id;
use openraft::vote::RaftLeaderId;

const CHUNK: usize = 1_000;
/// The receiver keeps whole pieces of so many bytes over a restart.
const SYNC: u64 = 2_500;

fn vote(term: u64) -> Vote {
    Vote { leader_id: RaftLeaderId::new(term, 1), committed: true }
}

fn identity(file: &[u8], node: u64) -> FileIdentity {
    let length = file.len() as u64;
    FileIdentity { node: NodeId(node), snapshot: 7, length, checksum: crc32c::crc32c(file) }
}

fn file(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ salt).collect()
}

/// What a channel or a machine does with one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    RequestLost,
    AnswerLost,
    /// It comes twice; the second answer counts.
    Twice,
    /// The last chunk that was ever sent comes before it.
    AfterAnOldOne,
    /// A bit of the data flips on the way.
    Corrupted,
    ReceiverRestarts,
    SenderRestarts,
    /// Another node leads from now on, with a file of its own.
    SenderChanges,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        8 => Just(Fate::Arrives),
        1 => Just(Fate::RequestLost),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::AfterAnOldOne),
        1 => Just(Fate::Corrupted),
        1 => Just(Fate::ReceiverRestarts),
        1 => Just(Fate::SenderRestarts),
        1 => Just(Fate::SenderChanges),
    ]
}

/// The receiver without disk: the part is a vector.
#[derive(Default)]
struct Receiver {
    receiving: Option<Receiving>,
    part: Vec<u8>,
    part_of: Option<FileIdentity>,
    transfers: u64,
    installed: Option<Vec<u8>>,
}

impl Receiver {
    fn restart(&mut self) {
        self.receiving = None;
        let kept = self.part.len() as u64 / SYNC * SYNC;
        self.part.truncate(usize::try_from(kept).unwrap());
        self.transfers += 1_000;
    }

    fn begin(&mut self, vote: Vote, identity: FileIdentity) -> Heard {
        if self.installed.is_some() {
            // What a snapshot of the same state holds is committed here.
            return Heard::Installed(vote);
        }
        match self.receiving.as_ref().map(|receiving| receiving.announced(&vote, &identity)) {
            Some(Opening::Continue) => {}
            Some(Opening::Refuse(refusal)) => return Heard::Refused { refusal, offset: 0 },
            Some(Opening::Replace) | None => {
                if self.part_of != Some(identity) {
                    self.part.clear();
                    self.part_of = Some(identity);
                }
                self.transfers += 1;
                let offset = self.part.len() as u64;
                self.receiving = Some(Receiving::new(self.transfers, vote, identity, offset));
            }
        }
        let receiving = self.receiving.as_ref().unwrap();
        Heard::Wanted { transfer: receiving.transfer, offset: receiving.offset() }
    }

    fn chunk(&mut self, chunk: &peer::SnapshotChunk) -> Heard {
        let Some(receiving) = &mut self.receiving else {
            return Heard::Refused { refusal: Refusal::UnknownTransfer, offset: 0 };
        };
        match receiving.chunk(chunk) {
            Ok(()) => {
                self.part.extend_from_slice(&chunk.data);
                receiving.wrote(chunk.data.len());
                Heard::Wanted { transfer: receiving.transfer, offset: receiving.offset() }
            }
            Err(refusal) => Heard::Refused { refusal, offset: receiving.offset() },
        }
    }

    fn end(&mut self, transfer: u64) -> Heard {
        let Some(receiving) = &mut self.receiving else {
            return Heard::Refused { refusal: Refusal::UnknownTransfer, offset: 0 };
        };
        match receiving.end(transfer) {
            Ok(true) => {
                assert_eq!(crc32c::crc32c(&self.part), receiving.identity.checksum, "a wrong file was taken");
                self.installed = Some(self.part.clone());
                Heard::Working { progress: 1 }
            }
            Ok(false) => Heard::Installed(receiving.vote),
            Err(refusal) => Heard::Refused { refusal, offset: receiving.offset() },
        }
    }
}

struct World {
    files: [Vec<u8>; 2],
    leader: usize,
    term: u64,
    sending: Sending,
    now: Duration,
    receiver: Receiver,
    old: Option<peer::SnapshotChunk>,
    sent: u64,
}

impl World {
    fn new(length: usize) -> Self {
        let files = [file(length, 0), file(length, 0x55)];
        let sending = Sending::new(length as u64, CHUNK, 0, Duration::ZERO);
        let receiver = Receiver::default();
        Self { files, leader: 0, term: 1, sending, now: Duration::ZERO, receiver, old: None, sent: 0 }
    }

    fn lead(&mut self, leader: usize) {
        self.leader = leader;
        self.term += 1;
        self.sending = Sending::new(self.files[leader].len() as u64, CHUNK, 0, self.now);
    }

    /// One exchange; how the transfer ended, if it did.
    fn step(&mut self, fate: Fate) -> Option<Ended> {
        match fate {
            Fate::ReceiverRestarts => self.receiver.restart(),
            Fate::SenderRestarts => self.lead(self.leader),
            Fate::SenderChanges => self.lead(1 - self.leader),
            Fate::AfterAnOldOne => {
                if let Some(old) = self.old.clone() {
                    self.receiver.chunk(&old);
                }
            }
            _ => {}
        }
        let (step, not_before) = self.sending.next();
        self.now = self.now.max(not_before);
        let begun = self.now;
        let heard = match fate {
            Fate::RequestLost => Heard::NoAnswer,
            Fate::AnswerLost => {
                self.serve(step, fate);
                Heard::NoAnswer
            }
            Fate::Twice => {
                self.serve(step, fate);
                self.serve(step, fate)
            }
            _ => self.serve(step, fate),
        };
        self.now += Duration::from_millis(1);
        self.sending.heard(heard, begun, self.now)
    }

    fn serve(&mut self, step: Step, fate: Fate) -> Heard {
        let file = &self.files[self.leader];
        match step {
            Step::Begin => self.receiver.begin(vote(self.term), identity(file, self.leader as u64)),
            Step::End { transfer } => self.receiver.end(transfer),
            Step::Chunk { transfer, offset, bytes } => {
                let from = usize::try_from(offset).unwrap();
                let mut data = file[from..from + bytes].to_vec();
                let checksum = crc32c::crc32c(&data);
                self.sent += data.len() as u64;
                if fate == Fate::Corrupted {
                    data[bytes / 2] ^= 4;
                }
                let chunk = peer::SnapshotChunk { transfer, offset, data: data.into(), checksum };
                let heard = self.receiver.chunk(&chunk);
                self.old = Some(chunk);
                heard
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_file_arrives_or_nothing_does(
        length in 1_usize..12_000,
        fates in proptest::collection::vec(fate(), 0..80),
    ) {
        let mut world = World::new(length);
        let mut ended = None;
        for fate in fates {
            ended = world.step(fate);
            if let Some(installed) = &world.receiver.installed {
                prop_assert!(world.files.contains(installed));
            }
            if ended.is_some() {
                break;
            }
        }
        // The faults end: within what the file needs it is there.
        for _ in 0..2_000 {
            if ended.is_some() {
                break;
            }
            ended = world.step(Fate::Arrives);
        }
        prop_assert!(matches!(ended, Some(Ended::Installed(_))), "{ended:?}");
        prop_assert!(world.files.contains(world.receiver.installed.as_ref().unwrap()));
    }

    #[test]
    fn any_step_of_any_peer_is_judged_without_harm(
        transfer in 0_u64..3,
        offset in prop_oneof![0_u64..3_000, Just(u64::MAX), Just(u64::MAX - 1)],
        data in proptest::collection::vec(any::<u8>(), 0..200),
        checksum: u32,
    ) {
        let mut receiving = Receiving::new(1, vote(1), identity(&file(2_000, 0), 1), 1_000);
        let right = transfer == 1 && offset == 1_000 && !data.is_empty() && crc32c::crc32c(&data) == checksum;
        let chunk = peer::SnapshotChunk { transfer, offset, data: data.into(), checksum };
        prop_assert_eq!(receiving.chunk(&chunk).is_ok(), right);
        prop_assert!(receiving.end(transfer).is_err());
    }

    #[test]
    fn no_answer_of_a_receiver_harms_the_sender(
        answers in proptest::collection::vec((0_u8..7, any::<u64>(), any::<i32>()), 0..50),
    ) {
        let mut sending = Sending::new(10_000, CHUNK, 1_000_000, Duration::ZERO);
        let mut now = Duration::ZERO;
        for (kind, number, reason) in answers {
            let refusal = Refusal::try_from(reason.rem_euclid(13)).unwrap_or_default();
            let heard = match kind {
                0 => Heard::Wanted { transfer: number, offset: number % 10_001 },
                1 => Heard::Wanted { transfer: 1, offset: number },
                2 => Heard::Working { progress: number },
                3 => Heard::Refused { refusal, offset: number },
                4 => Heard::NoAnswer,
                5 => Heard::Refused { refusal, offset: number % 10_001 },
                _ => Heard::NotSent,
            };
            let (step, not_before) = sending.next();
            if let Step::Chunk { offset, bytes, .. } = step {
                prop_assert!(bytes > 0 && bytes <= CHUNK && offset + bytes as u64 <= 10_000);
            }
            now = now.max(not_before);
            if sending.heard(heard, now, now).is_some() {
                break;
            }
        }
    }
}

#[test]
fn each_refusal_of_a_chunk_has_its_name() {
    let data = file(100, 0);
    let good = |offset: u64| peer::SnapshotChunk {
        transfer: 5,
        offset,
        data: data.clone().into(),
        checksum: crc32c::crc32c(&data),
    };
    let mut receiving = Receiving::new(5, vote(1), identity(&file(250, 0), 1), 0);
    assert_eq!(receiving.chunk(&good(0)), Ok(()));
    assert_eq!(
        receiving.chunk(&peer::SnapshotChunk { transfer: 4, ..good(0) }),
        Err(Refusal::UnknownTransfer)
    );
    assert_eq!(receiving.chunk(&good(1)), Err(Refusal::WrongOffset));
    assert_eq!(receiving.chunk(&peer::SnapshotChunk { checksum: 1, ..good(0) }), Err(Refusal::WrongChecksum));
    let empty = peer::SnapshotChunk { data: Bytes::new(), checksum: 0, ..good(0) };
    assert_eq!(receiving.chunk(&empty), Err(Refusal::Invalid));
    let long = vec![0; CHUNK_MAX_BYTES + 1];
    let long = peer::SnapshotChunk { checksum: crc32c::crc32c(&long), data: long.into(), ..good(0) };
    assert_eq!(receiving.chunk(&long), Err(Refusal::Invalid));
    assert_eq!(receiving.end(5), Err(Refusal::Incomplete));
    receiving.wrote(100);
    assert_eq!(receiving.chunk(&good(0)), Err(Refusal::WrongOffset), "repeated");
    receiving.wrote(100);
    assert_eq!(receiving.chunk(&good(200)), Err(Refusal::BeyondLength));
    receiving.wrote(50);
    assert_eq!(receiving.end(4), Err(Refusal::UnknownTransfer));
    assert_eq!(receiving.end(5), Ok(true));
    assert_eq!(receiving.end(5), Ok(false), "it is begun once");
    assert_eq!(receiving.chunk(&good(250)), Err(Refusal::AnotherUnderWay));
}

#[test]
fn a_newer_leader_or_file_replaces_and_an_installation_is_left_alone() {
    let (one, two) = (identity(&file(10, 0), 1), identity(&file(11, 0), 2));
    let mut receiving = Receiving::new(1, vote(3), one, 0);
    assert_eq!(receiving.announced(&vote(3), &one), Opening::Continue);
    assert_eq!(receiving.announced(&vote(4), &two), Opening::Replace);
    assert_eq!(receiving.announced(&vote(3), &two), Opening::Replace);
    assert_eq!(receiving.announced(&vote(2), &two), Opening::Refuse(Refusal::AnotherUnderWay));
    receiving.wrote(10);
    assert_eq!(receiving.end(1), Ok(true));
    assert_eq!(receiving.announced(&vote(3), &one), Opening::Continue);
    assert_eq!(receiving.announced(&vote(4), &two), Opening::Refuse(Refusal::AnotherUnderWay));
}

#[test]
fn a_transfer_keeps_its_pace_and_ends_only_when_nothing_moves() {
    let rate = 1 << 20;
    let length = 100 << 20;
    let mut sending = Sending::new(length, 1 << 20, rate, Duration::ZERO);
    let (mut now, mut offset) = (Duration::ZERO, 0);
    assert_eq!(sending.heard(Heard::Wanted { transfer: 1, offset: 0 }, now, now), None);
    while let (Step::Chunk { bytes, .. }, at) = sending.next() {
        now = now.max(at);
        offset += bytes as u64;
        let begun = now;
        now += Duration::from_millis(5);
        assert_eq!(sending.heard(Heard::Wanted { transfer: 1, offset }, begun, now), None);
    }
    // The whole took 100 s, more than any time without progress: no bound on the whole.
    assert!((Duration::from_secs(99)..Duration::from_secs(101)).contains(&now), "{now:?}");
    assert!(now > SNAPSHOT_IDLE);
    for progress in 1..=1_000 {
        now = sending.next().1;
        assert_eq!(sending.heard(Heard::Working { progress }, now, now), None);
    }
    let still = now;
    loop {
        now = sending.next().1;
        match sending.heard(Heard::NotSent, now, now) {
            None => assert!(now < still + SNAPSHOT_IDLE),
            Some(ended) => break assert_eq!(ended, Ended::Idle),
        }
    }
}

#[test]
fn chunks_shrink_on_a_slow_link_and_grow_again() {
    let mut sending = Sending::new(100 << 20, 512 << 10, 0, Duration::ZERO);
    let now = Duration::ZERO;
    assert_eq!(sending.heard(Heard::Wanted { transfer: 1, offset: 0 }, now, now), None);
    let size = |sending: &Sending| match sending.next().0 {
        Step::Chunk { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!(size(&sending), 512 << 10);
    for _ in 0..20 {
        assert_eq!(sending.heard(Heard::NoAnswer, now, now), None);
    }
    assert_eq!(size(&sending), CHUNK_MIN_BYTES);
    let mut offset = 0;
    for _ in 0..20 {
        offset += size(&sending) as u64;
        assert_eq!(sending.heard(Heard::Wanted { transfer: 1, offset }, now, now), None);
    }
    assert_eq!(size(&sending), 512 << 10);
}

#[test]
fn a_file_that_is_found_damaged_again_is_given_up() {
    let mut sending = Sending::new(10, 10, 0, Duration::ZERO);
    let (now, damaged) = (Duration::ZERO, Heard::Refused { refusal: Refusal::Damaged, offset: 0 });
    for _ in 0..2 {
        assert_eq!(sending.next().0, Step::Begin);
        assert_eq!(sending.heard(Heard::Wanted { transfer: 1, offset: 10 }, now, now), None);
        assert_eq!(sending.next().0, Step::End { transfer: 1 });
        let ended = sending.heard(damaged, now, now);
        if ended.is_some() {
            assert_eq!(ended, Some(Ended::Refused(Refusal::Damaged)));
            return;
        }
    }
    panic!("it goes on for good");
}

#[test]
fn the_log_waits_for_followers_within_its_bound() {
    let at = Duration::from_secs;
    let hold = Hold { needs: 50, in_transit: true, moved: at(0) };
    assert_eq!(purge_target(100, [hold].into_iter(), 10, 100), 50);
    assert_eq!(purge_target(40, [hold].into_iter(), 10, 100), 40);
    assert_eq!(purge_target(100, [hold].into_iter(), 100, 100), 100, "the log has used up its share");
    assert_eq!(purge_target(100, std::iter::empty(), 10, 100), 100);
    // In transit nothing else counts; then it goes with the follower, until it is near or stands still.
    assert_eq!(hold.followed(0, 1_000, 10, at(500)), Some(hold));
    let behind = Hold { in_transit: false, ..hold };
    let came = behind.followed(70, 1_000, 10, at(10)).unwrap();
    assert_eq!((came.needs, came.moved), (70, at(10)));
    assert_eq!(came.followed(0, 1_000, 10, at(39)).unwrap().needs, 70, "it never goes back");
    assert_eq!(came.followed(70, 1_000, 10, at(10) + SNAPSHOT_IDLE), None);
    assert_eq!(came.followed(990, 1_000, 10, at(11)), None);
    assert!(came.followed(989, 1_000, 10, at(11)).is_some());
}

#[test]
fn identities_differ_in_every_part() {
    let one = FileIdentity { node: NodeId(1), snapshot: 2, length: 3, checksum: 4 };
    let others = [
        FileIdentity { node: NodeId(2), ..one },
        FileIdentity { snapshot: 3, ..one },
        FileIdentity { length: 4, ..one },
        FileIdentity { checksum: 5, ..one },
    ];
    assert!(others.iter().all(|other| other.encode() != one.encode()));
    assert!(one.encode().len() <= kv_storage::limits::MAX_PART_IDENTITY);
    assert_eq!(crate::snapshot::id_of(Some(&log_id(1, 1, 1))), 2);
}

/// A receiver without room takes some bytes of each round and then none: that moves nothing.
#[test]
fn a_receiver_without_room_ends_the_transfer_soon() {
    for taken in [0, 1, 7] {
        let mut sending = Sending::new(10_000, CHUNK, 0, Duration::ZERO);
        let (mut now, mut exchanges, mut offset) = (Duration::ZERO, 0, 0);
        let ended = loop {
            exchanges += 1;
            assert!(exchanges <= 100, "it is sent again and again");
            let (step, not_before) = sending.next();
            now = now.max(not_before);
            let heard = match step {
                Step::Begin => {
                    offset = 0;
                    Heard::Wanted { transfer: exchanges, offset }
                }
                Step::Chunk { bytes, transfer, .. } if offset < taken * CHUNK as u64 => {
                    offset += bytes as u64;
                    Heard::Wanted { transfer, offset }
                }
                _ => Heard::Refused { refusal: Refusal::NoRoom, offset: 0 },
            };
            now += Duration::from_millis(1);
            if let Some(ended) = sending.heard(heard, now, now) {
                break ended;
            }
        };
        assert_eq!(ended, Ended::Refused(Refusal::NoRoom), "{taken}");
        // One refusal may be over soon, as when another part was just thrown away.
        assert_eq!(exchanges, 2 * (taken + 2), "{taken}");
    }
}
