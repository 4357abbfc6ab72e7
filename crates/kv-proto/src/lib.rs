//! The wire, and nothing but the wire: generated messages and services, their conversions from and to the
//! vocabulary of kv-types, and the table that maps error reasons to gRPC codes. Field numbers stay behind
//! this crate.

mod calls;
mod convert;
mod session;
mod status;

pub use calls::DataRequest;
pub use convert::{
    DecodeError, client_id_bytes, client_id_from_bytes, cluster_id_bytes, cluster_id_from_bytes,
};
pub use session::SessionCall;
pub use status::{ERROR_DOMAIN, code_of, failure_from_status, status_from_failure, status_with_code};

// Generated code refers to its neighbours by the path of its package.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    reason = "generated; documented in proto/"
)]
mod quorate {
    pub mod v1 {
        tonic::include_proto!("quorate.v1");
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("quorate.admin.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("quorate.peer.v1");
        }
    }
}

/// The files of the public packages with their comments, an encoded `FileDescriptorSet`: what a node tells
/// about itself. The private protocol between nodes is not among them.
pub const PUBLIC_DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("public");
/// The files that say what the details of an error are, in the same form.
pub const ERROR_DESCRIPTORS: &[u8] = tonic_types::pb::FILE_DESCRIPTOR_SET;

/// The administrative service, `quorate.admin.v1`.
pub use quorate::admin::v1 as admin;
/// The private protocol between nodes, `quorate.peer.v1`.
pub use quorate::peer::v1 as peer;
/// The public data service, `quorate.v1`.
pub use quorate::v1;
