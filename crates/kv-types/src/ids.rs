//! Names for everything that has an identity, as distinct types, so that a node id is never passed for a
//! group id.

use std::fmt;
use std::str::FromStr;

/// A text that names no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    /// What was read.
    pub text: String,
    /// What would have been one.
    pub expected: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// A cluster: 128 random bits, the same on every member, in every peer message and data directory.
    ClusterId(u128), "{:032x}");
id!(
    /// A member. Never reused.
    NodeId(u64), "n{}");
id!(
    /// A Raft group.
    GroupId(u32), "group {}");
id!(
    /// A ring: one assignment of ring partitions to nodes, shared by the namespaces that name it.
    RingId(u32), "ring {}");
id!(
    /// A ring partition: a prefix of the hash space of one ring. Not to be confused with a network partition.
    RingPartition(u32), "ring partition {}");
id!(
    /// A namespace. Never reused; the mode of an id never changes.
    NamespaceId(u64), "namespace {}");
id!(
    /// A version of the catalogue.
    Epoch(u64), "epoch {}");
id!(
    /// One life of one data directory, 64 random bits: dots are contiguous within it.
    Incarnation(u64), "{:016x}");
id!(
    /// A client or session: 128 random bits.
    ClientId(u128), "{:032x}");

impl GroupId {
    /// Group 0 replicates the catalogue.
    pub const CATALOGUE: Self = Self(0);
    /// The first group that holds strong namespaces.
    pub const FIRST_DATA: Self = Self(1);
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    /// Reads `n3` or `3`.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text.strip_prefix('n').unwrap_or(text).parse::<u64>() {
            Ok(id) if id > 0 => Ok(Self(id)),
            _ => Err(ParseIdError { text: text.to_owned(), expected: "a node (n1, n2, ...)" }),
        }
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    /// Reads 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let expected = "a cluster id (32 hexadecimal digits)";
        if text.len() != 32 {
            return Err(ParseIdError { text: text.to_owned(), expected });
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError { text: text.to_owned(), expected })
    }
}

/// Identity of one mutation, the same in every attempt (Ongaro's dissertation, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RequestId {
    /// Who asks.
    pub client_id: ClientId,
    /// Dense from 1 within the client id.
    pub seq: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}:{}", self.client_id.0 >> 96, self.seq)
    }
}

/// What it takes to send a mutation again from another process: as text `CLIENT:SEQ@MS`, the client id in 32
/// hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteId {
    /// The identity.
    pub request_id: RequestId,
    /// The client's wall clock when the operation was first issued, milliseconds since 1970. A later time
    /// would make a request that was forgotten look new.
    pub issued_at_ms: u64,
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestId { client_id, seq } = self.request_id;
        write!(f, "{:032x}:{seq}@{}", client_id.0, self.issued_at_ms)
    }
}

impl FromStr for WriteId {
    type Err = ParseIdError;

    /// An error for what has another form, and for a part that is 0: no request has such an id, so that
    /// none was sent under it.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let refused = |expected| ParseIdError { text: text.to_owned(), expected };
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| plain)
        };
        let parts = || {
            let (client, rest) = text.split_once(':')?;
            let (seq, issued) = rest.split_once('@')?;
            let hex = client.len() == 32 && client.bytes().all(|digit| digit.is_ascii_hexdigit());
            let client = u128::from_str_radix(client, 16).ok().filter(|_| hex)?;
            Some((client, number(seq)?, number(issued)?))
        };
        match parts() {
            None => Err(refused(
                "a request id as an error names it (32 hexadecimal digits, `:`, a number, `@`, a time)",
            )),
            Some((0, ..)) => Err(refused("the id of a request: its 32 digits, which are random, are all 0")),
            Some((_, 0, _)) => {
                Err(refused("the id of a request: the number after `:` is 0, and requests count from 1"))
            }
            Some((.., 0)) => {
                Err(refused("the id of a request: the time after `@`, in milliseconds since 1970, is 0"))
            }
            Some((client, seq, issued_at_ms)) => {
                let request_id = RequestId { client_id: ClientId(client), seq };
                Ok(Self { request_id, issued_at_ms })
            }
        }
    }
}

/// What a server is told of a mutation beside its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutation {
    /// The identity.
    pub request_id: RequestId,
    /// The client's wall clock when the operation was first issued, milliseconds since 1970.
    pub issued_at_ms: u64,
    /// Every seq below this one has been answered.
    pub lowest_unacked: u64,
    /// From 1.
    pub attempt: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_read_with_and_without_the_letter() {
        assert_eq!("n3".parse(), Ok(NodeId(3)));
        assert_eq!("3".parse(), Ok(NodeId(3)));
        for wrong in ["", "n", "n0", "nn1", "-1", "n1 "] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn writes_can_be_named_in_another_process() {
        let id =
            WriteId { request_id: RequestId { client_id: ClientId(0xab << 64), seq: 7 }, issued_at_ms: 5 };
        assert_eq!(id.to_string().parse(), Ok(id));
        let digits = "0".repeat(31);
        for wrong in [
            "",
            "5f2c0000:41",
            &format!("{digits}0:1@1"),
            &format!("{digits}1:0@1"),
            &format!("{digits}1:1"),
            &format!("+{digits}:1@1"),
            &format!("{digits}1:1@"),
            &format!("{digits}1:+1@1"),
        ] {
            assert!(wrong.parse::<WriteId>().is_err(), "{wrong:?}");
        }
        // What is zero is said by its place.
        for (zero, says) in [
            (format!("{digits}0:0@0"), "32 digits, which are random, are all 0"),
            (format!("{digits}1:0@1"), "requests count from 1"),
            (format!("{digits}1:1@0"), "since 1970, is 0"),
        ] {
            let refused = zero.parse::<WriteId>().unwrap_err().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }

    #[test]
    fn cluster_ids_survive_their_text() {
        let id = ClusterId(0x0123_4567_89ab_cdef_0000_0000_0000_0001);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("xyz".parse::<ClusterId>().is_err());
    }
}
