//! What a request to create or to alter a namespace asks for: everything is checked and the defaults are
//! filled in before anything is proposed.

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
        let fewer = u32::try_from(members).unwrap_or(DEFAULT_N).clamp(1, DEFAULT_N);
        let n = count(if request.n == 0 { fewer } else { request.n })?;
        let of = |asked: u32| if asked == 0 { Ok(majority(n)) } else { count(asked) };
        // Nothing else can keep such a promise.
        let strict = request.strict
            || !matches!(request.guarantee(), v1::Guarantee::Unspecified | v1::Guarantee::Eventual);
        Some(Replication { n, r: of(request.r)?, w: of(request.w)?, sloppy: !strict })
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

/// Which namespace is to be altered, and to what: `NAMESPACE_INVALID` where nothing is, or no number of
/// replicas.
pub(super) fn altered_counts(
    request: &admin::AlterNamespaceRequest,
) -> Result<(NamespaceName, Option<u8>, Option<u8>), Failure> {
    let name = NamespaceName::new(request.name.clone())?;
    let (r, w) = (request.r.map(count).transpose()?, request.w.map(count).transpose()?);
    if r.is_none() && w.is_none() {
        let message =
            format!("nothing of namespace `{name}` is to be altered: R and W can be, and neither is said");
        return Err(Failure::new(Reason::NamespaceInvalid, message));
    }
    Ok((name, r, w))
}

fn count(number: u32) -> Result<u8, Failure> {
    let message = format!("{number} is not a number of replicas");
    u8::try_from(number).map_err(|_| Failure::new(Reason::NamespaceInvalid, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mode: admin::Mode) -> admin::CreateNamespaceRequest {
        admin::CreateNamespaceRequest { name: "bank".into(), mode: mode.into(), ..Default::default() }
    }

    #[test]
    fn an_alteration_says_what_changes() {
        let asked = |r, w| {
            let request = admin::AlterNamespaceRequest { name: "cart".into(), r, w, mutation: None };
            altered_counts(&request).map(|(_, r, w)| (r, w)).map_err(|failure| failure.reason)
        };
        assert_eq!(asked(Some(1), None), Ok((Some(1), None)));
        assert_eq!(asked(None, Some(255)), Ok((None, Some(255))), "the catalogue knows N");
        assert_eq!(asked(None, None), Err(Reason::NamespaceInvalid));
        assert_eq!(asked(Some(256), None), Err(Reason::NamespaceInvalid));
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
