//! How a leader learns at which point of the log a read that begins now must be answered: the read index of
//! the Raft thesis, section 6.4.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::raft::linearizable_read::Linearizer;
use openraft::{Instant as _, LinearizerOption, ReadPolicy};

use crate::config::TypeConfig;
use crate::limits::DOUBTFUL_READ_WAIT;
use crate::machine::Raft;

/// The point that a read must wait for, or why no quorum confirmed that this node leads.
pub(crate) type Confirmed =
    Result<Linearizer<TypeConfig>, RaftError<TypeConfig, LinearizableReadError<TypeConfig>>>;

/// Asks a quorum, in a round of heartbeats that begins now and takes one `lease` of a leader at most, whether
/// this node still leads.
pub(crate) async fn confirmation(raft: Raft, lease: Duration) -> Confirmed {
    let last_quorum = {
        let metrics = raft.data_metrics();
        metrics.borrow_watched().last_quorum_acked.map(|at| at.into_inner().elapsed())
    };
    // Cut off from the quorum: do not let every read find that out by itself for a whole lease.
    let wait = if last_quorum.is_some_and(|ago| ago > lease) { DOUBTFUL_READ_WAIT } else { lease };
    let option = LinearizerOption::from(ReadPolicy::ReadIndex).with_wait_timeout(wait);
    raft.get_read_linearizer(option).await
}
