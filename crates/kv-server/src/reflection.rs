//! The interface described by itself: which services a node has and what their messages look like, so that
//! tools without the protocol files can call it. It tells the public packages, and not what nodes say to each
//! other.
//!
//! A call brings many questions, one after the other, and is answered while it is read. It has the deadline
//! of every other call, and counts for [`crate::limits::REFLECTION_BYTES`] until it ends.

use kv_proto::{ERROR_DESCRIPTORS, PUBLIC_DESCRIPTORS};
use tonic::service::Routes;
use tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME as V1;
use tonic_reflection::pb::v1alpha::server_reflection_server::SERVICE_NAME as V1ALPHA;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::{Builder, Error};

/// What is told: encoded sets of files.
const TOLD: [&[u8]; 5] = [
    PUBLIC_DESCRIPTORS,
    ERROR_DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    v1::FILE_DESCRIPTOR_SET,
    v1alpha::FILE_DESCRIPTOR_SET,
];

/// Whether a service is this one, in either version.
pub(crate) fn is(service: &str) -> bool {
    service == V1 || service == V1ALPHA
}

/// The service in both versions, which tell the same.
pub(crate) fn service() -> Result<Routes, Error> {
    let told = || {
        let none = Builder::configure().include_reflection_service(false);
        TOLD.into_iter().fold(none, Builder::register_encoded_file_descriptor_set)
    };
    Ok(Routes::new(told().build_v1()?).add_service(told().build_v1alpha()?).prepare())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{REFLECTION_BYTES, REFLECTION_REQUEST_BYTES};
    use prost::Message;

    /// A `FileDescriptorSet`, as far as its size goes.
    #[derive(Clone, PartialEq, Message)]
    struct Set {
        #[prost(bytes = "vec", repeated, tag = "1")]
        files: Vec<Vec<u8>>,
    }

    #[test]
    fn a_call_counts_for_all_that_it_may_hold() {
        let sets = TOLD.map(|set| Set::decode(set).unwrap());
        let largest = sets.iter().flat_map(|set| &set.files).map(Vec::len).max().unwrap();
        // It has the file, and the question with the name of its host, which is repeated beside it.
        let answer = largest + 3 * REFLECTION_REQUEST_BYTES;
        // tonic hands over 32 KiB and what the last answer has beyond them; its buffer doubles when it grows.
        let on_its_way = 2 * ((32 << 10) + answer);
        // One is made while another one waits.
        let waiting = 2 * answer;
        // A question that is not whole, and the frame that came with it.
        let arriving = 2 * (REFLECTION_REQUEST_BYTES + (16 << 10));
        let most = on_its_way + waiting + arriving;
        assert!(most <= REFLECTION_BYTES, "{most} of {REFLECTION_BYTES}");
        assert!(largest > 1_000, "nothing is told");
    }

    #[test]
    fn the_protocol_between_nodes_is_not_told() {
        let told = TOLD.map(|set| String::from_utf8_lossy(set).into_owned()).concat();
        assert!(told.contains("quorate.v1") && told.contains("quorate/admin/v1/admin.proto"));
        assert!(!told.contains("quorate.peer") && !told.contains("quorate/peer"));
    }

    #[test]
    fn both_versions_are_asked_here() {
        assert!(is("grpc.reflection.v1.ServerReflection") && is("grpc.reflection.v1alpha.ServerReflection"));
        assert!(!is("grpc.health.v1.Health") && !is(""));
        service().unwrap();
    }
}
