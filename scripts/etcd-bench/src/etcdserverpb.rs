//! The messages of etcd that the benchmark sends, made from `proto/etcd.proto`.
#![allow(missing_docs, clippy::all, unreachable_pub, reason = "generated")]

tonic::include_proto!("etcdserverpb");
