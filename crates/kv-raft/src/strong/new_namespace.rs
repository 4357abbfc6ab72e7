//! What a request to create a namespace asks for: everything is checked and the defaults are filled in before
//! anything is proposed.

use kv_proto::{admin, v1};
use kv_types::{Failure, Guarantee, Mode, NamespaceName, NamespaceSpec, Reason, Replication, majority};

/// What a request for a namespace asks for, with the defaults filled in. `members` is the size of the
/// cluster.
pub(super) fn namespace_spec(
    request: &admin::CreateNamespaceRequest,
    members: usize,
) -> Result<NamespaceSpec, Failure> {
    /// Replicas per key when the request does not say.
    const DEFAULT_N: u32 = 3;
    let name = NamespaceName::new(request.name.clone())?;
    let mode = match request.mode() {
        admin::Mode::Unspecified => {
            let choice = "choose a side of CAP: `strong` is linearizable and refuses in a minority; `available` answers in \
                          a minority and keeps concurrent writes as siblings";
            return Err(Failure::new(Reason::ModeMissing, choice));
        }
        admin::Mode::Strong => Mode::Strong,
        admin::Mode::Available => Mode::Available,
    };
    let asks_for_replicas = request.n != 0 || request.r != 0 || request.w != 0 || request.strict;
    let replication = if mode == Mode::Available || asks_for_replicas {
        let narrow = |number: u32| {
            let message = format!("{number} is not a number of replicas");
            u8::try_from(number).map_err(|_| Failure::new(Reason::NamespaceInvalid, message))
        };
        let fewer = u32::try_from(members).unwrap_or(DEFAULT_N).clamp(1, DEFAULT_N);
        let n = narrow(if request.n == 0 { fewer } else { request.n })?;
        let count = |asked: u32| if asked == 0 { Ok(majority(n)) } else { narrow(asked) };
        Some(Replication { n, r: count(request.r)?, w: count(request.w)?, sloppy: !request.strict })
    } else {
        None
    };
    let guarantee = match (request.guarantee(), mode) {
        (v1::Guarantee::Unspecified, Mode::Strong) => Guarantee::Linearizable,
        (v1::Guarantee::Unspecified, Mode::Available) => Guarantee::Eventual,
        (asked, _) => asked.try_into()?,
    };
    let spec = NamespaceSpec { name, mode, replication, guarantee };
    spec.check(members)?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mode: admin::Mode) -> admin::CreateNamespaceRequest {
        admin::CreateNamespaceRequest { name: "bank".into(), mode: mode.into(), ..Default::default() }
    }

    #[test]
    fn defaults_are_filled_in_and_a_mode_is_not() {
        let strong = namespace_spec(&request(admin::Mode::Strong), 3).unwrap();
        assert_eq!((strong.replication, strong.guarantee), (None, Guarantee::Linearizable));
        let available = namespace_spec(&request(admin::Mode::Available), 5).unwrap();
        assert_eq!(available.replication, Some(Replication { n: 3, r: 2, w: 2, sloppy: true }));
        let small = namespace_spec(&request(admin::Mode::Available), 1).unwrap();
        assert_eq!(small.replication, Some(Replication { n: 1, r: 1, w: 1, sloppy: true }));
        let missing = namespace_spec(&request(admin::Mode::Unspecified), 3).unwrap_err();
        assert_eq!(missing.reason, Reason::ModeMissing);
        let mixed = admin::CreateNamespaceRequest { r: 2, ..request(admin::Mode::Strong) };
        assert_eq!(namespace_spec(&mixed, 3).unwrap_err().reason, Reason::NamespaceInvalid);
    }
}
