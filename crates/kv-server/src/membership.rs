//! The members of the cluster file beside those of the catalogue. The file says where a node is: it is what
//! the operator changes when a node moves. The catalogue says who belongs to the cluster. Where the two
//! differ, a node says so at start.

use std::collections::BTreeMap;

use kv_types::NodeId;
use kv_types::catalogue::{Catalogue, Member};

/// The members that clients are told of: those of the catalogue, each where the file says, if it names it.
/// Before there is a catalogue, those of the file.
pub(crate) fn advertised(catalogue: &Catalogue, file: &[Member]) -> BTreeMap<NodeId, Member> {
    let mut members = catalogue.members.clone();
    for member in file {
        if catalogue.members.is_empty() || members.contains_key(&member.id) {
            members.insert(member.id, member.clone());
        }
    }
    members
}

/// What differs, a line for each member.
pub(crate) fn differences(catalogue: &Catalogue, file: &[Member]) -> Vec<String> {
    let mut lines = Vec::new();
    for member in file {
        let Some(known) = catalogue.members.get(&member.id) else {
            lines.push(format!(
                "{} is in the file and not in the catalogue: it follows the Raft groups without a vote and keeps no ring \
                 partition; members cannot be added yet",
                member.id
            ));
            continue;
        };
        for (what, here, there) in [
            ("client address", &member.client_address, &known.client_address),
            ("peer address", &member.peer_address, &known.peer_address),
            ("zone", &member.zone, &known.zone),
        ] {
            if here == there {
                continue;
            }
            let effect = match what {
                "zone" => "the catalogue's is used: zones are read when a cluster is created",
                _ => "the file's is used",
            };
            lines.push(format!(
                "{what} of {}: `{here}` in the file, `{there}` in the catalogue; {effect}",
                member.id
            ));
        }
    }
    for member in catalogue.members.values().filter(|member| file.iter().all(|other| other.id != member.id)) {
        lines.push(format!(
            "{} is in the catalogue and not in the file: it is still a member and is reached at {}; members cannot be \
             removed yet",
            member.id, member.peer_address
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, port: u16) -> Member {
        Member {
            id: NodeId(id),
            client_address: format!("127.0.0.1:{port}"),
            peer_address: format!("127.0.0.1:{}", port + 100),
            zone: String::new(),
        }
    }

    fn catalogue(members: impl IntoIterator<Item = Member>) -> Catalogue {
        let members = members.into_iter().map(|member| (member.id, member)).collect();
        Catalogue { members, ..Catalogue::default() }
    }

    #[test]
    fn the_file_says_where_a_member_is_and_the_catalogue_who_is_one() {
        let known = catalogue([member(1, 7101), member(2, 7102), member(3, 7103)]);
        let file = [member(1, 8101), member(2, 7102), member(4, 8104)];
        let advertised = advertised(&known, &file);
        assert_eq!(
            advertised.values().cloned().collect::<Vec<_>>(),
            [member(1, 8101), member(2, 7102), member(3, 7103)]
        );
        let fresh = super::advertised(&Catalogue::default(), &file);
        assert_eq!(fresh.len(), 3);
    }

    #[test]
    fn each_difference_is_said_of_its_member() {
        let known = catalogue([member(1, 7101), member(2, 7102), member(3, 7103)]);
        assert!(differences(&known, &[member(1, 7101), member(2, 7102), member(3, 7103)]).is_empty());
        let zoned = Member { zone: "z".into(), ..member(2, 7102) };
        let lines = differences(&known, &[member(1, 8101), zoned, member(4, 8104)]);
        let expected = [
            "client address of n1: `127.0.0.1:8101` in the file, `127.0.0.1:7101` in the catalogue",
            "peer address of n1: `127.0.0.1:8201` in the file, `127.0.0.1:7201` in the catalogue",
            "zone of n2: `z` in the file, `` in the catalogue",
            "n4 is in the file and not in the catalogue",
            "n3 is in the catalogue and not in the file",
        ];
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "{line}");
        }
    }
}
